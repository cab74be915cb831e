"""Odd, extreme and hostile input: a right answer or a typed error, and the caller's array untouched."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from arrowquant_nb.errors import CheckpointError, ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers import LayerStatistics, MatrixJob, QuantizedTensor, quantize_array, quantize_matrices

METHODS = ["rtn", "mse", "uls", "hqq", "r2q"]
METHODS_AND_BITS = [(method, bits) for method in METHODS for bits in (2, 4, 8) if method != "r2q" or bits == 2]
LEAST_SQUARES = ["mse", "uls", "r2q"]


def bits_of(method):
    """The usual width of a method."""
    return 2 if method == "r2q" else 4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("method", "bits"), METHODS_AND_BITS)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.37, -1.5, 1e-6, 6e4, 1e-20, -1e30])
def test_groups_of_one_value(method, bits, value):
    w = np.full((2, 70), value, np.float32)
    tensor = quantize_array(w, bits, 64, method)
    decoded = tensor.dequantize()
    assert np.isfinite(tensor.scales).all()
    assert (tensor.scales >= 0).all() if method == "r2q" else (tensor.scales > 0).all()  # two planes may coincide
    assert decoded == pytest.approx(w, rel=2**-10, abs=2**-23)
    if value == 0:
        assert not decoded.any()
        assert tensor.statistics.cosine == 1.0


@pytest.mark.parametrize(
    ("method", "bits", "group_size", "scale_format"),
    [*((m, b, 64, "float16") for m, b in METHODS_AND_BITS), ("uls", 4, 32, "k"), ("uls", 2, 16, "k")],
)
@pytest.mark.parametrize("value", [1e-8, -1e-8, 1e-27, -1e-27, -1e-38])
def test_one_value_that_float16_would_flush_to_zero_is_kept(method, bits, group_size, scale_format, value):
    w = np.full((2, 70), value, np.float32)
    tensor = quantize_array(w, bits, group_size, method, scale_format=scale_format)
    assert tensor.layout.scale_dtype(tensor.scales) == np.float32
    assert np.abs(tensor.dequantize() - w).max() <= abs(w[0, 0]) * 2**-10


@pytest.mark.parametrize(("method", "bits"), METHODS_AND_BITS)
def test_one_element(method, bits):
    tensor = quantize_array(np.array([-2.5], np.float32), bits, 64, method)
    assert tensor.dequantize() == pytest.approx(np.array([-2.5]), rel=2**-10)
    assert (tensor.rows, tensor.columns, tensor.shape) == (1, 1, (1,))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 63, 64, 65, 127, 200])
def test_tails_of_any_length(method, columns):
    w = normal(3, columns, seed=columns)
    bits = bits_of(method)
    tensor = quantize_array(w, bits, 64, method)
    assert tensor.scales.shape[:2] == (3, -(-columns // 64))
    assert tensor.packed.shape == (3, -(-columns * bits // 8))
    for dtype in ("float32", "float16", "bfloat16"):
        assert np.abs(tensor.dequantize(dtype).astype(np.float32) - w).max() < (0.5 if bits == 4 else 2.0)


@pytest.mark.parametrize("method", METHODS)
def test_denormal_weights(method):
    w = (normal(2, 64) * np.float32(1e-41)).astype(np.float32)
    tensor = quantize_array(w, bits_of(method), 64, method)
    assert tensor.scales.dtype == np.float32
    assert tensor.statistics.sqnr_db > 3 * bits_of(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_huge_outlier_makes_float32_scales(method):
    w = normal(2, 128)
    w[1, 5] = 3e6
    bits = bits_of(method)
    tensor = quantize_array(w, bits, 64, method)
    assert tensor.scales.dtype == np.float32
    assert tensor.dequantize()[1, 5] == pytest.approx(3e6, rel=0.35)
    assert tensor.dequantize()[0] == pytest.approx(w[0], abs=0.6 if bits == 4 else 2.0)


def test_float16_overflow_is_decided_by_the_scale_not_by_the_weight():
    w = np.zeros((1, 16), np.float32)
    w[0, 0] = 65504.0 * 15
    assert quantize_array(w, 4, 16, "rtn").scales.dtype == np.float16
    w[0, 0] = np.nextafter(w[0, 0], np.float32(np.inf))
    assert quantize_array(w, 4, 16, "rtn").scales.dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unusable_weights_name_tensor_count_and_first_index(method, bad, dtype):
    w = normal(5, 3, 7, 2)
    w[2, 1, 4, 1] = bad
    w[4, 2, 6, 1] = bad
    array = w.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else w
    with pytest.raises(CheckpointError, match=r"conv\.weight: 2 of 210 weights .* at index \(2, 1, 4, 1\)"):
        quantize_array(array, bits_of(method), 16, method, name="conv.weight")


def test_the_first_bad_index_is_right_in_a_converted_tile(monkeypatch):
    monkeypatch.setattr("arrowquant_nb.quantizers.affine.TILE_WEIGHTS", 64)
    w = normal(9, 40).astype(np.float64)
    w[7, 3] = np.nan
    with pytest.raises(CheckpointError, match=r"at index \(7, 3\)"):
        quantize_array(w, 4, 32, "rtn")


def test_nan_in_float16():
    with pytest.raises(CheckpointError, match=r"the first is nan at index \(70,\)"):
        quantize_array(np.array([1.0] * 70 + [np.nan], np.float16), 8, 64, "uls")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_input_equals_the_same_values_in_float32(method, dtype):
    half = normal(3, 150).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    bits = bits_of(method)
    one, other = quantize_array(half, bits, 64, method), quantize_array(half.astype(np.float32), bits, 64, method)
    assert one.packed.tobytes() == other.packed.tobytes()
    assert one.scales.tobytes() == other.scales.tobytes()
    assert one.zero_points.tobytes() == other.zero_points.tobytes()
    assert one.statistics == other.statistics
    assert (one.dtype, other.dtype) == (dtype, "float32")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kind", ["transposed", "strided", "big-endian", "float64", "read-only", "unaligned", "reversed"]
)
def test_any_memory_layout_gives_the_same_bytes_and_is_not_written(method, kind, monkeypatch):
    monkeypatch.setattr("arrowquant_nb.quantizers.affine.TILE_WEIGHTS", 500)
    w = normal(11, 130)
    match kind:
        case "transposed":
            array = np.asfortranarray(w)
        case "strided":
            array = np.repeat(w, 2, axis=1)[:, ::2]
        case "big-endian":
            array = w.astype(">f4")
        case "float64":
            array = w.astype(np.float64)
        case "read-only":
            array = w.copy()
            array.flags.writeable = False
        case "unaligned":
            array = np.frombuffer(b"x" + w.tobytes(), np.uint8)[1:].view(np.float32).reshape(w.shape)
            assert not array.flags.aligned
        case "reversed":
            array = w[::-1].copy()[::-1]
    before = array.tobytes()
    one, other = (quantize_array(a, bits_of(method), 64, method) for a in (array, w))
    assert array.tobytes() == before
    assert one.packed.tobytes() == other.packed.tobytes()
    assert one.scales.tobytes() == other.scales.tobytes()
    assert one.statistics == other.statistics


@pytest.mark.parametrize("dtype", [object, np.int8, np.int64, np.bool_, np.complex64, "U3", "V4"])
def test_other_dtypes_are_a_type_error(dtype):
    with pytest.raises(TypeError, match="layer7"):
        quantize_array(np.zeros((2, 16), dtype), name="layer7")


@pytest.mark.parametrize("value", [[1.0, 2.0], None, "weights", 3.0])
def test_what_is_no_array_is_a_type_error(value):
    with pytest.raises(TypeError, match="NumPy array"):
        quantize_array(value)


@pytest.mark.parametrize("shape", [(0,), (0, 8), (8, 0), (2, 0, 3)])
def test_empty_arrays_are_refused(shape):
    with pytest.raises(ShapeMismatchError, match="no weights to quantize"):
        quantize_array(np.zeros(shape, np.float32))


def test_zero_dimensions_are_refused():
    with pytest.raises(ShapeMismatchError, match="0-D"):
        quantize_array(np.array(3.0, np.float32))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bit_width": 3}, "bit_width 3"),
        ({"bit_width": 16}, "bit_width 16"),
        ({"group_size": 8}, "group_size 8"),
        ({"group_size": 100}, "group_size 100"),
        ({"group_size": 512}, "group_size 512"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": -64}, "group_size -64"),
        ({"method": "gptq"}, "gptq"),
        ({"method": ""}, "method ''"),
        ({"n_threads": -1}, "n_threads -1"),
        ({"n_threads": 10**6}, "n_threads 1000000"),
    ],
)
def test_settings_out_of_range_name_the_value(settings, named):
    with pytest.raises(ConfigurationError, match=named):
        quantize_array(normal(2, 32), **settings)


@pytest.mark.parametrize(
    ("importance", "error", "text"),
    [
        (np.ones(31, np.float32), ShapeMismatchError, "32 columns"),
        (np.ones((1, 32), np.float32), ShapeMismatchError, "32 columns"),
        (np.ones(32, np.float64), TypeError, "float32"),
        ([1.0] * 32, TypeError, "float32"),
        (np.full(32, -1, np.float32), ConfigurationError, "not negative"),
        (np.full(32, np.nan, np.float32), ConfigurationError, "finite"),
    ],
)
def test_bad_importance(importance, error, text):
    with pytest.raises(error, match=text):
        quantize_array(normal(2, 32), 4, 32, "uls", importance=importance)


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_what_fits_no_squares_refuses_importance(method):
    with pytest.raises(ConfigurationError, match=f"which {method} does not fit: leave it out, or use method mse, uls"):
        quantize_array(normal(2, 32), 4, 32, method, importance=np.ones(32, np.float32))


@pytest.mark.parametrize("bits", [4, 8])
def test_r2q_refuses_other_widths_and_names_the_fix(bits):
    with pytest.raises(
        ConfigurationError, match=rf"^w: method r2q .* bit_width {bits} .* set bit_width=2, or method uls"
    ):
        quantize_array(normal(2, 32), bits, 32, "r2q", name="w")
    with pytest.raises(ConfigurationError, match="set bit_width=2"):
        MatrixJob(normal(2, 32), "w", (2, 32), bits, 32, "r2q").layout  # noqa: B018 - the sizes refuse it


@pytest.mark.parametrize("method", LEAST_SQUARES)
@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e37])
def test_extreme_importance_stays_finite(method, factor):
    v = (np.random.default_rng(0).random(96) * factor).astype(np.float32)
    tensor = quantize_array(normal(3, 96), bits_of(method), 32, method, importance=v)
    assert tensor.statistics.sqnr_db > (4 if method == "r2q" else 10)


def test_convolutions_are_a_matrix_of_output_channels():
    w = normal(6, 4, 3, 3)
    tensor = quantize_array(w, 4, 16)
    flat = quantize_array(w.reshape(6, 36), 4, 16)
    assert tensor.packed.tobytes() == flat.packed.tobytes()
    assert tensor.shape == (6, 4, 3, 3)
    assert (tensor.rows, tensor.columns) == (6, 36)
    assert tensor.dequantize().shape == w.shape


@pytest.mark.parametrize("method", METHODS)
def test_out_buffers_are_filled_in_place(method):
    first, second = normal(4, 100), normal(4, 100, seed=9)
    bits = bits_of(method)
    out = quantize_array(first, bits, 64, method)
    expected = quantize_array(second, bits, 64, method)
    result = quantize_array(second, bits, 64, method, out=out)
    assert np.shares_memory(result.packed, out.packed)
    assert out.packed.tobytes() == expected.packed.tobytes()
    assert out.scales.tobytes() == expected.scales.tobytes()
    assert out.zero_points.tobytes() == expected.zero_points.tobytes()
    assert result.statistics == expected.statistics


def test_out_of_another_layout_is_refused():
    out = quantize_array(normal(4, 100), 4, 64, "rtn")
    with pytest.raises(ShapeMismatchError, match="layout"):
        quantize_array(normal(4, 101), 4, 64, "rtn", out=out)
    with pytest.raises(ShapeMismatchError, match="layout"):
        quantize_array(normal(4, 100), 4, 64, "uls", out=out)
    with pytest.raises(TypeError, match="QuantizedTensor"):
        quantize_array(normal(4, 100), 4, 64, "rtn", out=np.zeros(3))


def test_out_that_cannot_hold_the_scales_is_refused():
    out = quantize_array(normal(4, 64), 4, 64, "rtn")
    with pytest.raises(ShapeMismatchError, match="float16"):
        quantize_array(normal(4, 64) * np.float32(1e9), 4, 64, "rtn", out=out)


def test_out_that_is_read_only_is_refused():
    out = quantize_array(normal(4, 64), 4, 64, "rtn")
    out.scales.flags.writeable = False
    with pytest.raises(ShapeMismatchError, match="writable"):
        quantize_array(normal(4, 64), 4, 64, "rtn", out=out)


def test_dequantize_into_a_buffer():
    tensor = quantize_array(normal(4, 100), 4, 64)
    buffer = np.full((4, 100), np.nan, np.float32)
    assert tensor.dequantize(out=buffer) is buffer
    assert np.array_equal(buffer, tensor.dequantize())


@pytest.mark.parametrize(
    "buffer",
    [
        np.empty((4, 99), np.float32),
        np.empty((100, 4), np.float32).T,
        np.empty((4, 100), np.float64),
        np.empty((4, 100), ">f4"),
        np.empty((4, 200), np.float32)[:, ::2],
        np.empty(400, np.float32),
    ],
)
def test_dequantize_refuses_a_buffer_that_does_not_fit(buffer):
    with pytest.raises(ShapeMismatchError, match="out"):
        quantize_array(normal(4, 100), 4, 64).dequantize(out=buffer)


def test_dequantize_refuses_unknown_dtypes_and_read_only_buffers():
    tensor = quantize_array(normal(4, 100), 4, 64)
    with pytest.raises(ConfigurationError, match="float8"):
        tensor.dequantize("float8")
    buffer = np.empty((4, 100), np.float32)
    buffer.flags.writeable = False
    with pytest.raises(ShapeMismatchError, match="writable"):
        tensor.dequantize(out=buffer)
    with pytest.raises(TypeError, match="NumPy array"):
        tensor.dequantize(out=[0.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_output_is_the_float32_output_rounded_once(dtype):
    tensor = quantize_array(normal(7, 333) * 100, 8, 64)
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    assert tensor.dequantize(dtype).tobytes() == tensor.dequantize().astype(target).tobytes()


def test_many_matrices_in_one_call_equal_one_call_each():
    jobs = [
        MatrixJob(normal(rows, columns, seed=k), f"w{k}", (rows, columns), bits, 64, method)
        for k, (rows, columns, bits, method) in enumerate(
            [
                (1, 1, 2, "uls"),
                (50, 64, 4, "rtn"),
                (3, 1000, 8, "mse"),
                (200, 32, 4, "uls"),
                (2, 5, 2, "rtn"),
                (9, 70, 2, "r2q"),
                (4, 90, 4, "hqq"),
            ]
        )
    ]
    for job, tensor in zip(jobs, quantize_matrices(jobs, n_threads=2), strict=True):
        alone = quantize_array(job.weight, job.bit_width, 64, job.method)
        assert tensor.packed.tobytes() == alone.packed.tobytes()
        assert tensor.scales.tobytes() == alone.scales.tobytes()
        assert tensor.statistics == alone.statistics
    assert quantize_matrices([]) == []


def test_levels_refuse_scales_that_are_no_pairs():
    good = quantize_array(normal(4, 100), 2, 64, "r2q")
    assert good.scales.shape == (4, 2, 2)
    assert good.zero_points.shape == (4, 2)
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    for name, value in (
        ("scales", good.scales[..., 0].copy()),
        ("scales", good.scales.reshape(4, 4)),
        ("zero_points", good.zero_points.astype(np.float32)),
        ("zero_points", good.scales),
    ):
        with pytest.raises(ShapeMismatchError):
            QuantizedTensor(**{**fields, name: value})


def test_only_the_tensor_that_needs_them_gets_float32_scales():
    jobs = [MatrixJob(normal(2, 64) * np.float32(f), f"w{f}", (2, 64), 4, 64, "uls") for f in (1.0, 1e9, 1e-15)]
    assert [t.scales.dtype.name for t in quantize_matrices(jobs)] == ["float16", "float32", "float32"]


def test_a_job_refuses_a_weight_that_is_not_the_matrix_view():
    with pytest.raises(ShapeMismatchError, match="w: weight"):
        MatrixJob(normal(2, 64), "w", (64, 2), 4, 64, "uls")
    with pytest.raises(ShapeMismatchError, match="C-contiguous"):
        MatrixJob(np.asfortranarray(normal(4, 64)), "w", (4, 64), 4, 64, "uls")
    with pytest.raises(TypeError, match="float64"):
        MatrixJob(normal(2, 64).astype(np.float64), "w", (2, 64), 4, 64, "uls")


def test_tensors_pickle_copy_and_print():
    tensor = quantize_array(normal(4, 100), 4, 64)
    for twin in (pickle.loads(pickle.dumps(tensor)), copy.copy(tensor), copy.deepcopy(tensor)):
        assert twin.dequantize().tobytes() == tensor.dequantize().tobytes()
        assert twin.statistics == tensor.statistics
    assert repr(tensor).startswith("QuantizedTensor(4x100, INT4 g64 uls, 4.640 bits per weight, SQNR ")


def test_a_tensor_refuses_buffers_of_another_shape():
    good = quantize_array(normal(4, 100), 4, 64)
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    for name, value in (
        ("packed", good.packed[:, :-1].copy()),
        ("scales", good.scales.astype(np.float64)),
        ("zero_points", good.zero_points.astype(np.float32)),
        ("shape", (5, 100)),
        ("shape", (0, 100)),
    ):
        with pytest.raises(ShapeMismatchError):
            QuantizedTensor(**{**fields, name: value})
    for name, value in (("bit_width", 3), ("grid", "levels"), ("grid", "table"), ("dtype", "int8"), ("group_size", 60)):
        with pytest.raises(ConfigurationError):
            QuantizedTensor(**{**fields, name: value})


def test_statistics_combine_in_any_order_and_round_trip():
    parts = [quantize_array(normal(3, 70, seed=k), 2, 32).statistics for k in range(5)]
    whole = LayerStatistics.combine(parts)
    assert LayerStatistics.combine(parts[::-1]) == whole
    assert whole.n == 5 * 210
    assert LayerStatistics.from_dict(whole.to_dict()) == whole
    assert 0.9 < whole.cosine < 1.0
    assert whole.mse == whole.sum_ee / whole.n


def test_tiles_of_rows_combine_to_the_whole():
    w = normal(20, 130)
    whole = quantize_array(w, 4, 64).statistics
    tiles = LayerStatistics.combine([quantize_array(w[i : i + 7], 4, 64).statistics for i in (0, 7, 14)])
    assert tiles.sum_ee == pytest.approx(whole.sum_ee, rel=1e-15)
    assert tiles.w_absmax == whole.w_absmax


@pytest.mark.soak
def test_offsets_beyond_two_to_the_31_elements(tmp_path):
    rows, columns = 2, (1 << 31) // 2 + 64
    w = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(rows, columns))
    w[1, -64:] = np.arange(64, dtype=np.float16)
    tensor = quantize_array(w, 8, 64, "rtn")
    assert tensor.statistics.sum_ww == float((np.arange(64.0) ** 2).sum())
    assert tensor.packed[1, -1] == 255
    assert not tensor.packed[0].any()
