"""Compiled products with stored weights: checks every buffer, and hands out memory to the threads.

How they share the work is in product_run.h, the arithmetic in product_floats.h and product_codes.h.
"""

from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

include "buffers.pxi"

cdef extern from "product_run.h" nogil:
    enum: SLOTS
    ctypedef struct dequantize_job:
        const uint8_t *packed
        const uint8_t *scales
        const uint8_t *zeros
        uint8_t *out
        int64_t rows, columns, n_groups, packed_stride, zeros_stride, k_stride, n_blocks
        int kind, bits, group_size, minimum, wide, k_bits, levels
    ctypedef struct float_product:
        dequantize_job weight
        const float *x
        const float *bias
        float *out
        float *ordered
        int64_t tokens
        int n_threads
    ctypedef struct input_codes:
        const float *x
        const float *scale
        const float *zero
        int32_t *codes
        float *scales
        float *sums
        int32_t *offsets
        int64_t tokens, columns, words, n_segments
        int bits, span, segment, weight_bits, plane_bytes
    ctypedef struct code_product:
        dequantize_job weight
        const input_codes *inputs
        const float *bias
        float *out
    ctypedef struct product_set:
        const char *name
        int64_t (*ordered_size)(const float_product *job) noexcept
        int64_t (*float_scratch)(const float_product *job) noexcept
        int (*plane_bytes)(const code_product *job) noexcept
        int64_t (*code_scratch)(const code_product *job) noexcept
    int product_sets(product_set *out)
    void run_floats(
        const product_set *isa, const float_product *job, bint alone, uint8_t *scratch, int64_t nbytes, int n_threads
    )
    void run_codes(
        const product_set *isa, const code_product *job, int64_t n_parts, uint8_t *scratch, int64_t nbytes,
        int n_threads
    )

cdef extern from "dlpack.h":
    enum: DL_MAJOR, DL_CPU
    ctypedef struct dl_version:
        uint32_t major
    ctypedef struct dl_device:
        int32_t type
    ctypedef struct dl_tensor:
        dl_device device
        int32_t ndim
        int64_t *shape
        int64_t *strides
    ctypedef struct dl_exchange:
        dl_version version
        int (*from_object)(void *object, dl_tensor *out) noexcept
    bint dl_is_contiguous(const dl_tensor *tensor)
    bint dl_is_float32(const dl_tensor *tensor)
    bint dl_is_bfloat16(const dl_tensor *tensor)
    void *dl_start(const dl_tensor *tensor)

cdef extern from "bfloat16.h" nogil:
    void from_bfloat16(const uint16_t *of, float *to, int64_t n)
    void to_bfloat16(const float *of, uint16_t *to, int64_t n)

cdef enum:
    ORDERED_NBYTES = 1 << 22  # every panel reads them all: they must stay in the third-level cache
    LEAST_TOKENS = 128  # so that decoding costs little beside multiplying; fewer are laid out by one thread
    TERMS_PER_THREAD = 1 << 21  # 50 us of multiplications; for fewer, waking a thread costs more than it saves

cdef product_set _sets[5]
cdef int _n_sets = product_sets(_sets)


def supported_isas():
    """Return the names of the instruction sets this machine runs, fastest last."""
    return tuple(_sets[i].name.decode() for i in range(_n_sets))


cdef bint _is_forked_child = False


def run_alone():
    """Run on one thread from now on: those of OpenMP do not survive a fork, and a second pool would hang."""
    global _is_forked_child
    _is_forked_child = True


cdef dict _numbers = {isa: i for i, isa in enumerate(supported_isas())}


cdef int _find(str isa) except -1:
    number = _numbers.get(isa)
    if number is None:
        raise ValueError(f"instruction set {isa!r} is not one of {supported_isas()}")
    return number


cdef class Matrix:
    """A `StoredMatrix` whose buffers were checked once, for many products; holds on to them."""

    cdef dequantize_job job
    cdef list held

    def __cinit__(self, object stored):
        self.held = []
        _fill_weight(&self.job, stored, self.held)


cdef int _fill_weight(dequantize_job *job, object weight, list held) except -1:
    """Take over a `StoredMatrix` after checking that its buffers fit its sizes."""
    cdef int64_t item, scales_nbytes
    packed, scales, zero_points, grid, bits, group_size, (rows, columns) = weight
    if rows < 1 or columns < 1 or bits not in (2, 4, 8) or group_size not in range(16, 257, 16):
        raise ValueError(f"sizes out of range: {rows} x {columns}, {bits} bits, group_size {group_size}")
    memset(job, 0, sizeof(dequantize_job))
    job.rows, job.columns, job.bits, job.group_size = rows, columns, bits, group_size
    job.minimum = {"zero_point": 0, "minimum": 1, "levels": 1, "k": 1}[grid]
    job.levels = grid == "levels"
    if job.levels and bits != 2:
        raise ValueError(f"grid levels has two bits a code, not {bits}")
    job.n_groups = (job.columns + job.group_size - 1) // job.group_size
    item = scales.dtype.itemsize
    if grid == "k":
        job.k_bits = 6 if bits == 4 else 4
        job.n_blocks = (job.columns + 255) // 256
        job.k_stride = scales.shape[1]
        item = (job.k_stride - (job.n_groups * job.k_bits + 7) // 8) // job.n_blocks
        if (bits, group_size) not in ((2, 16), (2, 32), (4, 32), (4, 64)) or (
            job.k_stride != job.n_blocks * item + (job.n_groups * job.k_bits + 7) // 8
        ):
            raise ValueError(f"no k format with {bits} bits, group_size {group_size}, {job.k_stride} bytes a row")
    if item not in (2, 4):
        raise ValueError(f"scales must be float16 or float32, got {scales.dtype}")
    job.wide = item == 4
    job.packed_stride = (job.columns * job.bits + 7) // 8
    job.zeros_stride = (job.n_groups * job.bits + 7) // 8
    scales_nbytes = job.rows * (job.k_stride if job.k_bits else job.n_groups * item)
    job.packed = <const uint8_t *><size_t>_address(packed, held, "packed", job.rows * job.packed_stride, False)
    job.scales = <const uint8_t *><size_t>_address(scales, held, "scales", scales_nbytes * (1 + job.levels), False)
    job.zeros = <const uint8_t *><size_t>_address(
        zero_points, held, "zero_points", scales_nbytes if job.minimum else job.rows * job.zeros_stride, False)
    return 0


cdef int _check(int64_t tokens, int64_t rows, dequantize_job *weight, const float[::1] bias, int64_t columns) except -1:
    if columns != weight.columns or rows != weight.rows or tokens < 1 or (bias is not None and len(bias) != rows):
        raise ValueError(f"{tokens} x {columns} inputs do not go with {weight.rows} x {weight.columns} weights")
    return 0


def multiply_floats(
    const float[:, ::1] x, Matrix weight not None, const float[::1] bias, float[:, ::1] out, int n_threads, str isa,
):
    """Fill `out` (tokens, rows) with x (tokens, columns) times the stored weight, transposed, plus `bias` or None."""
    cdef const product_set *chosen = &_sets[_find(isa)]
    _check(x.shape[0], out.shape[1], &weight.job, bias, x.shape[1])
    if out.shape[0] != x.shape[0] or n_threads < 1:
        raise ValueError(f"{out.shape[0]} rows of outputs for {x.shape[0]} of inputs, {n_threads} threads")
    _floats(chosen, &weight.job, &x[0, 0], NULL if bias is None else &bias[0], &out[0, 0], x.shape[0], n_threads)


def multiply_codes(
    const float[:, ::1] x, Matrix weight not None, const float[::1] bias, float[:, ::1] out, int bits, int64_t span,
    const float[::1] scale, const float[::1] zero, int n_threads, str isa,
):
    """Do as `multiply_floats` with x rounded to codes of `bits`.

    The grid is that of the range of each token and `span` columns, or given: `scale` and `zero` per token.
    """
    cdef input_codes inputs
    cdef const product_set *chosen = &_sets[_find(isa)]
    _check(x.shape[0], out.shape[1], &weight.job, bias, x.shape[1])
    if out.shape[0] != x.shape[0] or n_threads < 1:
        raise ValueError(f"{out.shape[0]} rows of outputs for {x.shape[0]} of inputs, {n_threads} threads")
    if (scale is None) != (zero is None) or (scale is not None and (len(scale) != len(x) or len(zero) != len(x))):
        raise ValueError("scale and zero must be given together, one per token")
    inputs.scale = inputs.zero = NULL
    if scale is not None:
        inputs.scale, inputs.zero = &scale[0], &zero[0]
    inputs.x, inputs.tokens = &x[0, 0], x.shape[0]
    _describe(&inputs, &weight.job, bits, span)
    _codes(chosen, &weight.job, &inputs, NULL if bias is None else &bias[0], &out[0, 0], n_threads)


cdef int _worth_waking(int n_threads, const dequantize_job *weight, int64_t tokens) noexcept:
    if _is_forked_child:
        return 1
    return min(n_threads, max(1, tokens * weight.rows * weight.columns // TERMS_PER_THREAD))


cdef int _floats(
    const product_set *chosen, const dequantize_job *weight, const float *x, const float *bias, float *out,
    int64_t tokens, int n_threads,
) except -1:
    """Lay inputs out anew for the product, some tokens at a time: at most ORDERED_NBYTES of them."""
    cdef float_product job
    cdef int64_t at_once, start, ordered_size, scratch_nbytes
    cdef uint8_t *scratch
    cdef uint8_t *of_threads
    job.weight, job.bias = weight[0], bias
    n_threads = job.n_threads = _worth_waking(n_threads, weight, tokens)
    at_once = max(LEAST_TOKENS, ORDERED_NBYTES // (4 * weight.columns))
    at_once = tokens if tokens <= at_once else (tokens + (tokens - 1) // at_once) // ((tokens - 1) // at_once + 1)
    job.tokens = at_once
    ordered_size = chosen.ordered_size(&job)
    scratch_nbytes = chosen.float_scratch(&job)
    scratch = <uint8_t *>malloc(n_threads * scratch_nbytes + 4 * ordered_size + 64)
    if scratch == NULL:
        raise MemoryError
    job.ordered = <float *>((<size_t>scratch + 63) // 64 * 64)
    for start in range(0, tokens, at_once):
        job.x, job.out = x + start * weight.columns, out + start * weight.rows
        job.tokens = min(at_once, tokens - start)
        of_threads = <uint8_t *>(job.ordered + ordered_size)
        with nogil:
            run_floats(chosen, &job, job.tokens <= LEAST_TOKENS, of_threads, scratch_nbytes, n_threads)
    free(scratch)
    return 0


cdef int _describe(input_codes *inputs, const dequantize_job *weight, int bits, int64_t span) except -1:
    """Note how inputs become codes: every parameter is the same within a segment."""
    cdef int64_t a = weight.group_size, b = 0 if span >= weight.columns else span
    if bits not in (4, 8):
        raise ValueError(f"codes of inputs cannot have {bits} bits: 4 or 8")
    if span < 16 or b % 16:
        raise ValueError(f"a span of {span} columns is not a multiple of 16")
    while b:
        a, b = b, a % b
    inputs.segment, inputs.span = a, min(span, weight.columns)
    inputs.bits, inputs.weight_bits = bits, weight.bits
    inputs.columns = weight.columns
    inputs.n_segments = (inputs.columns + inputs.segment - 1) // inputs.segment
    inputs.words = inputs.n_segments * inputs.segment // 4
    return 0


cdef int _codes(
    const product_set *chosen, const dequantize_job *weight, input_codes *inputs, const float *bias, float *out,
    int n_threads,
) except -1:
    cdef code_product job
    cdef int64_t n_slots = (inputs.tokens + SLOTS - 1) // SLOTS, nbytes
    cdef uint8_t *scratch
    cdef uint8_t *of_threads
    n_threads = _worth_waking(n_threads, weight, inputs.tokens)
    job.weight, job.inputs, job.bias, job.out = weight[0], inputs, bias, out
    inputs.plane_bytes = chosen.plane_bytes(&job)
    inputs.words = (inputs.words + inputs.plane_bytes - 1) // inputs.plane_bytes * inputs.plane_bytes
    nbytes = max(chosen.code_scratch(&job), inputs.words * 4)
    scratch = <uint8_t *>malloc(n_slots * SLOTS * 4 * (inputs.words + 3 * inputs.n_segments) + n_threads * nbytes)
    if scratch == NULL:
        raise MemoryError
    inputs.codes = <int32_t *>scratch
    inputs.scales = <float *>(inputs.codes + n_slots * SLOTS * inputs.words)
    inputs.sums = inputs.scales + n_slots * SLOTS * inputs.n_segments
    inputs.offsets = <int32_t *>(inputs.sums + n_slots * SLOTS * inputs.n_segments)
    of_threads = <uint8_t *>(inputs.offsets + n_slots * SLOTS * inputs.n_segments)
    with nogil:
        run_codes(chosen, &job, n_slots, of_threads, nbytes, n_threads)
    free(scratch)
    return 0


include "ready_product.pxi"
