import ml_dtypes
import numpy as np
import pytest
import xxhash

from arrowquant_nb.errors import (
    CheckpointError,
)
from arrowquant_nb.storage.checkpoint import open_checkpoint


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_multiplied_by_its_scale_and_the_scale_is_not_listed(tmp_path, write, weights, dtype):
    codes = weights((300, 40), dtype)
    tensors = {"a.weight": codes, "a.scale_weight": np.float32(0.25), "a.bias": weights(300), "b.weight": codes}
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", tensors))
    assert list(checkpoint.entries) == ["a.weight", "a.bias", "b.weight"]
    assert checkpoint.entries["a.weight"].scale == "a.scale_weight"
    assert np.array_equal(checkpoint.read_rows("a.weight", 7, 200), codes[7:207].astype(np.float32) * np.float32(0.25))
    assert np.array_equal(checkpoint.read_rows("b.weight", 0, 300), codes.astype(np.float32))
    assert checkpoint.n_bytes == 2 * codes.nbytes + 4 + 1200
    raw = codes.tobytes() + np.float32(0.25).tobytes()
    assert checkpoint.hash_tensor("a.weight") == xxhash.xxh3_128_hexdigest(raw)


def test_every_float8_code_decodes_as_ml_dtypes_says(tmp_path, write):
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        codes = np.arange(256, dtype=np.uint8).view(dtype).reshape(2, 128)
        checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", {"a.weight": codes}))
        assert np.array_equal(checkpoint.read_rows("a.weight", 0, 2), codes.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("name", ["weight_scale", "scale_weight", "weight_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,), (260,), (260, 1), (3, 2)])
def test_scales_per_tensor_row_and_block(tmp_path, write, weights, name, shape):
    codes, scale = weights((260, 200), "float8_e4m3fn"), np.abs(weights(shape, seed=1))
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", {"a.weight": codes, f"a.{name}": scale}))
    blocks = shape == (3, 2)
    factors = np.repeat(np.repeat(scale, 128, 0), 128, 1)[:260, :200] if blocks else scale.reshape(-1, 1)
    expected = codes.astype(np.float32) * factors
    assert np.array_equal(checkpoint.read_rows("a.weight", 0, 260), expected)
    assert np.array_equal(checkpoint.read_rows("a.weight", 120, 30), expected[120:150])


def test_a_kept_float8_tensor_with_a_scale_is_carried_as_float32(tmp_path, write, weights):
    codes = weights((4, 8), "float8_e4m3fn")
    checkpoint = open_checkpoint(
        write(tmp_path / "m.safetensors", {"a.weight": codes, "a.weight_scale": np.float32(2), "b.weight": codes})
    )
    assert [checkpoint.entries[n].kept_dtype for n in ("a.weight", "b.weight")] == ["float32", "float8_e4m3fn"]
    values = checkpoint.read_bytes("a.weight").view(np.float32).reshape(4, 8)
    assert np.array_equal(values, codes.astype(np.float32) * 2)
    assert checkpoint.read_bytes("b.weight").tobytes() == codes.tobytes()


def test_marker_and_activation_scales(tmp_path, write, weights):
    codes = weights((4, 8), "float8_e4m3fn")
    tensors = {
        "scaled_fp8": codes[:0, 0],
        "a.weight": codes,
        "a.scale_weight": np.float32(1),
        "a.scale_input": np.float32(3),
    }
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", tensors))
    assert list(checkpoint.entries) == ["a.weight", "a.scale_input"]


@pytest.mark.parametrize(
    ("companion", "value", "message"),
    [
        ("a.weight_zero_point", np.float32(1), r"'a\.weight_zero_point' belongs to the float8 weight 'a\.weight'"),
        ("a.comfy_quant", np.zeros(4, np.uint8), r"'a\.comfy_quant' marks a weight that is quantized already"),
        ("a.weight_scale_2", np.float32(1), r"'a\.weight_scale_2' belongs to"),
        ("a.weight_scale", np.ones(3, np.float32), r"'a\.weight_scale' has shape \(3,\)"),
        ("a.weight_scale", np.int64(1), r"'a\.weight_scale' is int64"),
        ("a.weight_scale", np.ones((4, 2), np.float32), "does not fit"),
    ],
)
def test_an_unknown_or_unfit_companion_is_an_error(tmp_path, write, weights, companion, value, message):
    tensors = {"a.weight": weights((4, 8), "float8_e4m3fn"), companion: value}
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(tmp_path / "m.safetensors", tensors))


def test_two_scales_and_a_nan_scale_are_errors(tmp_path, write, weights):
    codes = weights((4, 8), "float8_e4m3fn")
    both = {"a.weight": codes, "a.weight_scale": np.float32(1), "a.scale_weight": np.float32(1)}
    with pytest.raises(CheckpointError, match="has two scales"):
        open_checkpoint(write(tmp_path / "m.safetensors", both))
    checkpoint = open_checkpoint(
        write(tmp_path / "n.safetensors", {"a.weight": codes, "a.weight_scale": np.float32("nan")})
    )
    with pytest.raises(CheckpointError, match=r"'a\.weight_scale' holds NaN"):
        checkpoint.read_rows("a.weight", 0, 1)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight": np.ones((4, 8), np.int8), "a.weight_scale": np.ones((4, 1), np.float32)},
        {"a.weight": np.ones((4, 8), np.uint8), "a.weight.absmax": np.ones(4, np.float32)},
        {"a.qweight": np.ones((4, 8), np.int32), "a.scales": np.ones(4, np.float16)},
        {"a.weight_packed": np.ones((4, 8), np.int32)},
    ],
)
def test_quantized_sources_are_refused(tmp_path, write, tensors):
    with pytest.raises(CheckpointError, match="give the float checkpoint it was made from"):
        open_checkpoint(write(tmp_path / "m.safetensors", tensors))


def test_quantization_metadata_in_the_header_is_refused(tmp_path, write, weights):
    path = write(tmp_path / "m.safetensors", {"a.weight": weights((4, 8))}, {"_quantization_metadata": "{}"})
    with pytest.raises(CheckpointError, match="quantized already"):
        open_checkpoint(path)
