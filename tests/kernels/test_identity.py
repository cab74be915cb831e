"""Every instruction set, any number of threads and the NumPy path give the same bytes."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import _kernels
from arrowquant_nb._kernels import RowsJob
from arrowquant_nb.quantizers import quantize_array
from arrowquant_nb.quantizers.layout import LEAST_SQUARES_METHODS, METHODS, Layout, grid_of

COMPILED_ISAS = [isa for isa in _kernels.available_isas() if isa != "numpy"]
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

K_FORMATS = [(2, 16), (2, 32), (4, 32), (4, 64)]

needs_compiled = pytest.mark.skipif(not COMPILED_ISAS, reason="the kernels are not compiled (ARROWQUANT_NB_PURE=1)")


def rows_like_real_weights(seed, rows, columns, dtype, wide):
    """Heavy tails, and rows of zeros, of one value, tiny, one sided, negative zero, with an outlier, far from zero."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(3, (rows, columns)) * np.exp(rng.normal(size=(rows, 1)))
    odd = [
        np.zeros,
        lambda n: np.full(n, 0.37),
        lambda n: rng.normal(size=n) * 1e-5,
        lambda n: np.abs(rng.normal(size=n)),
    ]
    odd += [lambda n: np.full(n, -0.0), lambda n: rng.normal(size=n) + 100, lambda n: -np.abs(rng.normal(size=n)) * 5]
    for row in range(rows):
        if rng.random() < 0.4:
            w[row] = odd[rng.integers(len(odd))](columns)
    if rng.random() < 0.5:
        w[rng.integers(rows), rng.integers(columns)] = 3000.0
    if wide and dtype == "float32":
        w *= 10.0 ** rng.integers(-40, 34, (rows, 1))
    return np.ascontiguousarray(w.astype(DTYPES[dtype]))


def quantize(w, bits, group_size, method, gain, importance, wide, isa, n_threads, scale_format="float16"):
    layout = Layout(*w.shape, bits, group_size, grid_of(method, scale_format))
    buffers = layout.buffers(np.dtype(np.float32 if wide else np.float16))
    out = (
        *(np.full(shape, fill, dtype) for fill, (shape, dtype) in zip((0xAA, 7, 7), buffers, strict=True)),
        np.full((len(w), 4), 7.0),
        np.full(len(w), 7, np.uint8),
    )
    job = RowsJob(w, w.dtype.name, bits, group_size, method, gain, importance, *out, scale_format)
    _kernels.quantize_rows([job], n_threads, isa)
    return out


def assert_same(expected, found):
    """Status of every row, and everything else of the rows that hold usable codes."""
    assert expected[4].tobytes() == found[4].tobytes()
    usable = expected[4] == 0
    for name, one, other in zip(("packed", "scales", "zero_points", "sums"), expected, found, strict=False):
        assert one[usable].tobytes() == other[usable].tobytes(), name


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(range(16, 257, 16)),
    st.sampled_from(sorted(METHODS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100)
def test_quantize_equals_the_numpy_path(
    isa, seed, rows, columns, dtype, bits, group_size, method, gain, weighted, wide
):
    w = rows_like_real_weights(seed, rows, columns, dtype, wide)
    importance = None
    if method == "r2q":
        bits = 2
    if weighted and method in LEAST_SQUARES_METHODS:
        importance = (np.random.default_rng(seed).random(columns) ** 3 + 0.001).astype(np.float32)
    settings_ = (bits, group_size, method, gain, importance, wide)
    assert_same(quantize(w, *settings_, "numpy", 1), quantize(w, *settings_, isa, 2))


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 800),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from(K_FORMATS),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_double_quantized_scales_equal_the_numpy_path(isa, seed, rows, columns, dtype, sizes, gain, weighted, wide):
    w = rows_like_real_weights(seed, rows, columns, dtype, wide)
    importance = (np.random.default_rng(seed).random(columns) ** 3 + 0.001).astype(np.float32) if weighted else None
    settings_ = (*sizes, "uls", gain, importance, wide)
    expected = quantize(w, *settings_, "numpy", 1, "k")
    assert_same(expected, quantize(w, *settings_, isa, 2, "k"))


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.integers(1, 800), st.sampled_from(K_FORMATS), st.booleans())
@settings(max_examples=25)
def test_decoding_double_quantized_scales_equals_the_numpy_path(isa, dtype, seed, rows, columns, sizes, wide):
    rng = np.random.default_rng(seed)
    kind = np.dtype(np.float32 if wide else np.float16)
    packed, scales, zeros = (
        rng.integers(0, 256, shape, np.uint8) for shape, _ in Layout(rows, columns, *sizes, "k").buffers(kind)
    )
    n_blocks = -(-columns // 256)
    for buffer in (scales, zeros):  # floats that exist
        buffer[:, : n_blocks * kind.itemsize] = rng.random((rows, n_blocks)).astype(kind).view(np.uint8)
    found = []
    for name in ("numpy", isa):
        out = np.full((rows, columns), 7, DTYPES[dtype])
        _kernels.dequantize_rows(packed, scales, zeros, "k", *sizes, out, dtype, 2, name)
        found.append(out.tobytes())
    assert found[0] == found[1]


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 300), st.sampled_from([2, 4, 8]), st.booleans())
@settings(max_examples=25)
def test_dequantize_equals_the_numpy_path(isa, dtype, seed, rows, columns, bits, wide):
    rng = np.random.default_rng(seed)
    grids = ("zero_point", "minimum", "levels") if bits == 2 else ("zero_point", "minimum")
    for grid, group_size in itertools.product(grids, (16, 48, 64)):
        layout = Layout(rows, columns, bits, group_size, grid)
        scale = np.float32 if wide else np.float16
        packed = rng.integers(0, 256, layout.packed_shape, np.uint8)
        scales = np.exp(rng.uniform(-12, 11, layout.scales_shape)).astype(scale)
        zeros = rng.integers(0, 256, layout.zero_points_shape, np.uint8)
        if grid != "zero_point":
            zeros = rng.normal(size=layout.zero_points_shape).astype(scale)
        found = []
        for name in ("numpy", isa):
            out = np.full((rows, columns), 7, DTYPES[dtype])  # float16 may overflow to inf: alike on every path
            _kernels.dequantize_rows(packed, scales, zeros, grid, bits, group_size, out, dtype, 2, name)
            found.append(out.tobytes())
        assert found[0] == found[1]


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@pytest.mark.parametrize(("method", "bits"), [("rtn", 4), ("uls", 4), ("hqq", 4), ("r2q", 2)])
def test_threads_do_not_matter(isa, method, bits):
    w = rows_like_real_weights(5, 700, 515, "float32", False)
    expected = quantize(w, bits, 64, method, True, None, False, isa, 1)
    for n_threads in (2, 3, 7):
        assert_same(expected, quantize(w, bits, 64, method, True, None, False, isa, n_threads))


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
def test_threads_that_decode_do_not_matter(isa):
    tensor = quantize_array(rows_like_real_weights(6, 1600, 1030, "float32", False), 4, 64)
    one, three = (tensor.dequantize(n_threads=n) for n in (1, 3))  # enough that threads are woken for it
    assert one.tobytes() == three.tobytes()
    out = np.empty_like(one)
    arrays = tensor.packed, tensor.scales, tensor.zero_points, tensor.grid
    _kernels.dequantize_rows(*arrays, 4, 64, out, "float32", 2, isa)
    assert out.tobytes() == one.tobytes()


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("offset", [0, 2, 4, 16, 60])
def test_large_outputs_at_any_alignment(isa, dtype, offset):
    """Outputs of several MB bypass the cache, in whole lines; the edges around them must survive."""
    columns, rows = 1100, 2200
    item = np.dtype(DTYPES[dtype]).itemsize
    offset -= offset % item
    layout = Layout(rows, columns, 4, 64, "zero_point")
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, layout.packed_shape, np.uint8)
    scales = rng.random(layout.scales_shape).astype(np.float16)
    zeros = rng.integers(0, 256, layout.zero_points_shape, np.uint8)
    memory = np.full(rows * columns * item + 256, 0xEE, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    out = memory[start : start + rows * columns * item].view(DTYPES[dtype]).reshape(rows, columns)
    expected = np.empty_like(out)
    _kernels.dequantize_rows(packed, scales, zeros, "zero_point", 4, 64, expected, dtype, 1, "numpy")
    _kernels.dequantize_rows(packed, scales, zeros, "zero_point", 4, 64, out, dtype, 2, isa)
    assert out.tobytes() == expected.tobytes()
    assert (memory[:start] == 0xEE).all()
    assert (memory[start + out.nbytes :] == 0xEE).all()


@needs_compiled
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quotients_in_the_middle_between_two_codes(isa, bits):
    """Ties and their neighbours: the reciprocal in the fast loop must not decide them otherwise than the division."""
    n = 2**bits - 1
    rng = np.random.default_rng(bits)
    rows = []
    for _ in range(400):
        s = np.float32(np.float16(rng.uniform(0.001, 2.0)))
        row = (rng.integers(0, n, 128) - n // 2 + 0.5).astype(np.float32) * s
        steps = rng.integers(-2, 3, 128)
        row = np.nextafter(row, np.where(steps < 0, -np.inf, np.inf).astype(np.float32), where=steps != 0, out=row)
        row[::64], row[1::64] = -(n // 2) * s, (n - n // 2) * s  # the scale of the group is s itself
        rows.append(row)
    w = np.stack(rows)
    for method in ("rtn", "mse", "uls", "hqq"):
        settings_ = (bits, 64, method, False, None, False)
        assert_same(quantize(w, *settings_, "numpy", 1), quantize(w, *settings_, isa, 1))


@needs_compiled
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38, -3e38])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_unusable_rows_are_marked_on_every_path(bad, method):
    w = rows_like_real_weights(1, 20, 200, "float32", False)
    w[3, 0], w[7, 199], w[11, 64] = bad, bad, bad
    for isa in _kernels.available_isas():
        status = quantize(w, 2, 64, method, True, None, False, isa, 1)[4]
        assert np.flatnonzero(status == 1).tolist() == [3, 7, 11]


@needs_compiled
@pytest.mark.parametrize("method", sorted(METHODS))
def test_rows_that_float16_cannot_hold_are_marked_on_every_path(method):
    w = rows_like_real_weights(2, 20, 200, "float32", False)
    w[3], w[7, 64:128], w[11] = -1e30, 1e6, w[11] * np.float32(1e-9)
    w[12] = 0.25 + (np.arange(200) == 5) * 1e7
    w[13], w[15, 128:192], w[17] = 1e-27, -2e-8, -1e-9
    status = [quantize(w, 2, 64, method, True, None, False, isa, 1)[4] for isa in _kernels.available_isas()]
    assert all(s.tolist() == status[0].tolist() for s in status)
    assert set(np.flatnonzero(status[0])) >= {3, 7, 11, 12, 13, 15, 17}


@needs_compiled
@pytest.mark.parametrize("sizes", K_FORMATS)
def test_rows_whose_float_pairs_float16_cannot_hold_are_marked_on_every_path(sizes):
    w = rows_like_real_weights(2, 20, 600, "float32", False)
    w[3], w[7, 256:512], w[11] = -1e30, -1e-8, 1e-9
    w[13, 512:] = np.where(np.arange(88) < 40, -1e-10, 0)  # groups of one value, one of them of two
    status = [quantize(w, *sizes, "uls", True, None, False, isa, 1, "k")[4] for isa in _kernels.available_isas()]
    assert all(s.tolist() == status[0].tolist() for s in status)
    assert set(np.flatnonzero(status[0])) >= {3, 7, 11, 13}


@needs_compiled
def test_buffers_beside_the_output_are_left_alone():
    """Guard bytes around every OUT buffer, for sizes that are no multiple of anything."""
    for columns, bits, method, isa in itertools.product(
        (1, 17, 63, 65, 95, 130), (2, 4, 8), sorted(METHODS), COMPILED_ISAS
    ):
        if method == "r2q" and bits != 2:
            continue
        w = rows_like_real_weights(columns, 3, columns, "bfloat16", False)
        layout = Layout(3, columns, bits, 32, METHODS[method])
        shapes = [
            (layout.packed_shape, np.uint8),
            (layout.scales_shape, np.float16),
            layout.parameters(np.dtype(np.float16))[1],
            ((3, 4), np.float64),
            ((3,), np.uint8),
        ]
        memories, views = [], []
        for shape, dtype in shapes:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            memory = np.full(64 + size + 64, 0xEE, np.uint8)
            memories.append((memory, size))
            views.append(memory[64 : 64 + size].view(dtype).reshape(shape))
        _kernels.quantize_rows([RowsJob(w, "bfloat16", bits, 32, method, True, None, *views)], 1, isa)
        for memory, size in memories:
            assert (memory[:64] == 0xEE).all()
            assert (memory[64 + size :] == 0xEE).all()
