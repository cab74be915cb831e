"""Compiled row kernels: checks every buffer, cuts the rows into blocks, runs the blocks on OpenMP threads.

One parallel region serves all jobs of a call, and blocks never share an output, so the bytes do not
depend on the number of threads. The arithmetic lives in the C headers beside this file.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc

include "buffers.pxi"

cdef extern from "dispatch.h" nogil:
    ctypedef struct quantize_job:
        const uint8_t *weight
        const float *importance
        uint8_t *packed
        uint8_t *scales
        uint8_t *zeros
        double *sums
        uint8_t *status
        int64_t rows, columns, n_groups, packed_stride, zeros_stride, k_stride, n_blocks
        int kind, bits, group_size, method, gain, wide, k_bits
    ctypedef struct dequantize_job:
        const uint8_t *packed
        const uint8_t *scales
        const uint8_t *zeros
        uint8_t *out
        int64_t rows, columns, n_groups, packed_stride, zeros_stride, k_stride, n_blocks
        int kind, bits, group_size, minimum, wide, k_bits, levels
    ctypedef struct instruction_set:
        const char *name
    int supported_sets(instruction_set *out)
    int grid_of(int method)
    void run_quantize(const instruction_set *isa, const quantize_job *job, int64_t start, int64_t stop, float *gain)
    void run_dequantize(const instruction_set *isa, const dequantize_job *job, int64_t start, int64_t stop)

cdef struct row_block:
    int64_t job, start, stop, gain

KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
METHODS = {"rtn": 0, "mse": 1, "uls": 2, "hqq": 3, "r2q": 4}
cdef int64_t DECODED_PER_THREAD = 1 << 19  # 50 us; for fewer, waking a thread costs more than it saves
cdef int64_t BLOCK_WEIGHTS = 1 << 16  # float32 weights of a block stay in the second-level cache for the gain pass

cdef instruction_set _sets[4]
cdef int _n_sets = supported_sets(_sets)


def supported_isas():
    """Return the names of the instruction sets this machine runs, fastest last."""
    return tuple(_sets[i].name.decode() for i in range(_n_sets))


cdef int _find(str isa) except -1:
    for i in range(_n_sets):
        if _sets[i].name.decode() == isa:
            return i
    raise ValueError(f"instruction set {isa!r} is not one of {supported_isas()}")


cdef int _check_sizes(int64_t rows, int64_t columns, int bits, int group_size, int n_threads) except -1:
    if rows < 1 or columns < 1 or bits not in (2, 4, 8) or group_size not in range(16, 257, 16) or n_threads < 1:
        raise ValueError(
            f"sizes out of range: {rows} x {columns}, {bits} bits, group_size {group_size}, {n_threads} threads"
        )
    return 0


cdef int _check_levels(bint levels, int bits) except -1:
    if levels and bits != 2:
        raise ValueError(f"grid levels has two bits a code, not {bits}")
    return 0


cdef int _k_sizes(
    object scales, int64_t columns, int bits, int group_size, int64_t *n_blocks, int64_t *stride,
) except -1:
    """Fill in blocks and bytes of a row of scales in the k format; return the bytes of a block's float."""
    if (bits, group_size) not in ((2, 16), (2, 32), (4, 32), (4, 64)) or scales.dtype.itemsize != 1:
        raise ValueError(f"no k format with {bits} bits, group_size {group_size}, scales {scales.dtype}")
    n_blocks[0] = (columns + 255) // 256
    stride[0] = scales.shape[1]
    cdef int64_t integers = ((columns + group_size - 1) // group_size * (6 if bits == 4 else 4) + 7) // 8
    for item in (2, 4):
        if stride[0] == n_blocks[0] * item + integers:
            return item
    raise ValueError(f"scales: {stride[0]} bytes a row do not fit {columns} columns")


cdef int _fill_quantize(quantize_job *job, object order, list held) except -1:
    cdef int64_t rows, columns, groups, item, weight_nbytes, scales_nbytes, zeros_nbytes
    cdef int grid
    rows, columns = order.weight.shape
    _check_sizes(rows, columns, order.bit_width, order.group_size, 1)
    job.rows, job.columns = rows, columns
    job.bits, job.group_size = order.bit_width, order.group_size
    job.kind, job.method = KINDS[order.kind], METHODS[order.method]
    job.gain = bool(order.gain_correction)
    grid = grid_of(job.method)
    _check_levels(grid == 2, job.bits)
    groups = job.n_groups = (columns + job.group_size - 1) // job.group_size
    job.k_bits = job.k_stride = job.n_blocks = 0
    item = order.scales.dtype.itemsize
    if order.scale_format == "k":
        item = _k_sizes(order.scales, columns, job.bits, job.group_size, &job.n_blocks, &job.k_stride)
        job.k_bits = 6 if job.bits == 4 else 4
        if job.method != 2:
            raise ValueError("the k format needs method uls")
    job.wide = item == 4
    job.packed_stride = (columns * job.bits + 7) // 8
    job.zeros_stride = (groups * job.bits + 7) // 8
    weight_nbytes = rows * columns * (4 if job.kind == 0 else 2)
    job.weight = <const uint8_t *><size_t>_address(order.weight, held, "weight", weight_nbytes, False)
    job.packed = <uint8_t *><size_t>_address(order.packed, held, "packed", rows * job.packed_stride, True)
    scales_nbytes = zeros_nbytes = rows * (job.k_stride if job.k_bits else groups * item)
    if grid == 2:
        scales_nbytes *= 2
    if grid == 0:
        zeros_nbytes = rows * job.zeros_stride
    job.scales = <uint8_t *><size_t>_address(order.scales, held, "scales", scales_nbytes, True)
    job.zeros = <uint8_t *><size_t>_address(order.zero_points, held, "zero_points", zeros_nbytes, True)
    job.sums = <double *><size_t>_address(order.sums, held, "sums", rows * 32, True)
    job.status = <uint8_t *><size_t>_address(order.status, held, "status", rows, True)
    job.importance = NULL
    if order.importance is not None:
        job.importance = <const float *><size_t>_address(order.importance, held, "importance", columns * 4, False)
    return 0


def quantize_rows(object jobs, int n_threads, str isa):
    """Fill the OUT arrays of every job (see `arrowquant_nb._kernels.job.RowsJob`)."""
    cdef int64_t n_jobs = len(jobs), n_blocks = 0, n_gains = 0, i, j, step, row
    cdef const instruction_set *chosen = &_sets[_find(isa)]
    cdef list held = []
    cdef quantize_job *orders = <quantize_job *>malloc((n_jobs + 1) * sizeof(quantize_job))
    cdef row_block *blocks = NULL
    cdef float *gains = NULL
    if n_threads < 1:
        n_threads = 1
    try:
        if orders == NULL:
            raise MemoryError
        for j in range(n_jobs):
            _fill_quantize(&orders[j], jobs[j], held)
            step = max(1, BLOCK_WEIGHTS // orders[j].columns)
            n_blocks += (orders[j].rows + step - 1) // step
            n_gains += orders[j].rows
        blocks = <row_block *>malloc((n_blocks + 1) * sizeof(row_block))
        gains = <float *>malloc((n_gains + 1) * sizeof(float))
        if blocks == NULL or gains == NULL:
            raise MemoryError
        i = n_gains = 0
        for j in range(n_jobs):
            step = max(1, BLOCK_WEIGHTS // orders[j].columns)
            row = 0
            while row < orders[j].rows:
                blocks[i].job, blocks[i].start, blocks[i].stop = j, row, min(row + step, orders[j].rows)
                blocks[i].gain = n_gains + row
                row += step
                i += 1
            n_gains += orders[j].rows
        n_threads = min(n_threads, max(1, n_blocks))
        for i in prange(n_blocks, nogil=True, schedule="dynamic", num_threads=n_threads):
            run_quantize(chosen, &orders[blocks[i].job], blocks[i].start, blocks[i].stop, gains + blocks[i].gain)
    finally:
        free(orders)
        free(blocks)
        free(gains)


def dequantize_rows(
    object packed, object scales, object zero_points, str grid, int bit_width, int group_size, object out, str kind,
    int n_threads, str isa,
):
    """Decode into `out` (rows, columns) of dtype `kind`."""
    cdef dequantize_job job
    cdef const instruction_set *chosen = &_sets[_find(isa)]
    cdef list held = []
    cdef int64_t rows, columns, item, step, i, n_blocks, scales_nbytes
    rows, columns = out.shape
    _check_sizes(rows, columns, bit_width, group_size, n_threads)
    job.rows, job.columns, job.bits, job.group_size, job.kind = rows, columns, bit_width, group_size, KINDS[kind]
    job.minimum = {"zero_point": 0, "minimum": 1, "levels": 1, "k": 1}[grid]
    job.levels = grid == "levels"
    _check_levels(job.levels, bit_width)
    job.k_bits = job.k_stride = job.n_blocks = 0
    item = scales.dtype.itemsize
    if grid == "k":
        item = _k_sizes(scales, columns, bit_width, group_size, &job.n_blocks, &job.k_stride)
        job.k_bits = 6 if bit_width == 4 else 4
    elif item not in (2, 4):
        raise ValueError(f"scales must be float16 or float32, got {scales.dtype}")
    job.wide = item == 4
    job.n_groups = (columns + group_size - 1) // group_size
    job.packed_stride = (columns * bit_width + 7) // 8
    job.zeros_stride = (job.n_groups * bit_width + 7) // 8
    job.packed = <const uint8_t *><size_t>_address(packed, held, "packed", rows * job.packed_stride, False)
    scales_nbytes = rows * (job.k_stride if job.k_bits else job.n_groups * item)
    job.scales = <const uint8_t *><size_t>_address(scales, held, "scales", scales_nbytes * (1 + job.levels), False)
    job.zeros = <const uint8_t *><size_t>_address(
        zero_points, held, "zero_points", scales_nbytes if job.minimum else rows * job.zeros_stride, False)
    i = rows * columns * (4 if job.kind == 0 else 2)
    job.out = <uint8_t *><size_t>_address(out, held, "out", i, True)
    step = max(1, BLOCK_WEIGHTS // columns)
    n_blocks = (rows + step - 1) // step
    n_threads = min(n_threads, max(1, rows * columns // DECODED_PER_THREAD))
    for i in prange(n_blocks, nogil=True, schedule="dynamic", num_threads=n_threads):
        run_dequantize(chosen, &job, i * step, min((i + 1) * step, rows))
