"""Compiled rotation of rows: checks the buffers, cuts the rows into blocks, runs them on OpenMP threads.

Rows are independent, so the bytes do not depend on the number of threads. The arithmetic lives in rotation.h.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t

cdef extern from "rotation.h" nogil:
    ctypedef struct rotation_job:
        float *values
        const float *signs
        int64_t columns, length
        int backward
    ctypedef void (*rotation)(const rotation_job *job, int64_t start, int64_t stop)
    rotation rotation_for(int lanes)
    void run_rotation(rotation kernel, const rotation_job *job, int64_t start, int64_t stop)

LANES = {"scalar": 4, "neon": 4, "avx2": 8, "avx512": 16}
cdef int64_t BLOCK_WEIGHTS = 1 << 16
cdef int64_t WEIGHTS_PER_THREAD = 1 << 17  # 60 us; for fewer, waking a thread costs more than it saves


def rotate_rows(float[:, ::1] values, const float[::1] signs, int64_t length, bint backward, int n_threads, str isa):
    """Rotate float32 rows in place (see `arrowquant_nb._kernels.numpy_rotation`)."""
    cdef rotation_job job
    cdef rotation kernel = rotation_for(LANES[isa])
    cdef int64_t rows = values.shape[0], step, n_blocks, i
    if rows < 1 or values.shape[1] < 1 or signs.shape[0] != values.shape[1] or n_threads < 1:
        raise ValueError(f"{rows} x {values.shape[1]} values do not go with {signs.shape[0]} signs")
    if length < 16 or length & (length - 1) or values.shape[1] % length:
        raise ValueError(f"length {length} is not a power of two from 16 that divides {values.shape[1]}")
    job.values, job.signs = &values[0, 0], &signs[0]
    job.columns, job.length, job.backward = values.shape[1], length, backward
    step = max(1, BLOCK_WEIGHTS // job.columns)
    n_blocks = (rows + step - 1) // step
    n_threads = min(n_threads, max(1, rows * job.columns // WEIGHTS_PER_THREAD))
    for i in prange(n_blocks, nogil=True, schedule="dynamic", num_threads=n_threads):
        run_rotation(kernel, &job, i * step, min((i + 1) * step, rows))
