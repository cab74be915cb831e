"""ComfyUI's formats: the bytes of comfy-kitchen's eager code (recorded, and compared where it is there), and files."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from arrowquant_nb import ConfigurationError, OutputError, QuantizationError, export_model, open_quantized
from arrowquant_nb.export.comfy_rounding import (
    hadamard,
    rotated,
    rotation_group,
    round_rows_to_int4,
    round_rows_to_int8,
)

Q = "transformer_blocks.0.attn1.to_q"
NARROW = "transformer_blocks.0.attn2.to_k.weight"  # rows of 200
# Weights whose rotation float32 holds exactly, so that no order of summation matters.
DYADIC = ((np.arange(3 * 512).reshape(3, 512) * 37) % 101 - 50).astype(np.float32) / 64
DYADIC[2] = 0


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_sixteen_columns_worked_out_by_hand():
    matrix = hadamard(16)
    np.testing.assert_array_equal(matrix @ matrix, np.eye(16))
    row = np.zeros((1, 16), np.float32)
    row[0, 0] = 4.0  # the first row of H: h4 (x) h4, first row (1, 1, 1, -1) (x) (1, 1, 1, -1)
    found = rotated(row, 16)
    np.testing.assert_array_equal(found, [[1, 1, 1, -1, 1, 1, 1, -1, 1, 1, 1, -1, -1, -1, -1, 1]])
    codes, scales = round_rows_to_int8(found)
    np.testing.assert_array_equal(codes, 127 * found)
    assert scales[0, 0] == np.float32(1) / np.float32(127)
    codes, packed, scales = round_rows_to_int4(found)
    np.testing.assert_array_equal(codes, 7 * found)
    assert packed.view(np.uint8)[0, :2].tolist() == [7 | 7 << 4, 7 | 9 << 4]  # 9 is -7 in four bits
    assert scales.tolist() == [np.float32(1) / np.float32(7)]


def test_the_bytes_that_comfy_kitchen_wrote_for_dyadic_weights():
    """Recorded once from comfy-kitchen 0.2.40: quantize_int8_convrot_weight and quantize_convrot_w4a4_weight."""
    codes, scales = round_rows_to_int8(rotated(DYADIC, 256))
    assert codes[0, :12].tolist() == [-28, 47, 103, -32, 5, -34, -55, 1, -38, -2, 92, -4]
    assert codes[1, :12].tolist() == [-9, -10, -51, -13, -53, 63, 101, -57, -39, 38, -42, 35]
    assert scales.reshape(-1).view(np.uint32).tolist() == [1009398889, 1009060372, 228737632]
    assert sha256(codes) == "3a49728ede71557488fcd6282ce0947281960d8c77ae60faf1cd7a2e210502b5"
    _, packed, scales = round_rows_to_int4(rotated(DYADIC, 256))
    assert packed[0, :12].tolist() == [62, -26, -32, 13, 14, 5, -49, 61, 17, -2, 31, 30]
    assert scales.view(np.uint32).tolist() == [1044447232, 1044063378, 763056419]
    assert sha256(packed) == "a38627e513c06fd4bb75df26678dc2f063f1ab11a2b8abac1275c4ffdbb7d58b"
    codes, scales = round_rows_to_int8(rotated(DYADIC[:2, :16], 16))
    assert codes[0].tolist() == [59, -88, -3, -34, -65, 20, -127, 74, 43, -104, -19, -50, 35, 120, -27, -58]
    assert scales.tolist() == [[0.0067974901758134365], [0.007658710703253746]]


@settings(max_examples=20)
@given(st.sampled_from([(256, 512), (64, 192), (16, 48)]), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_rotating_twice_is_nothing_and_codes_are_near(sizes, rows, seed):
    group, columns = sizes
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    turned = rotated(weight, group)
    np.testing.assert_allclose(rotated(turned, group), weight, atol=1e-5)
    assert rotation_group(columns) == group
    for codes, scales in (round_rows_to_int8(turned), round_rows_to_int4(turned)[::2]):
        assert (np.abs(codes * scales.reshape(-1, 1) - turned) <= scales.reshape(-1, 1) * 0.5001).all()


def test_comfy_kitchen_gives_the_same_bytes_for_any_weights():
    quantization = pytest.importorskip("comfy_kitchen.backends.eager.quantization")
    w4a4 = pytest.importorskip("comfy_kitchen.backends.eager.convrot_w4a4")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for group, columns in ((256, 512), (64, 320), (16, 48)):
        weight = (rng.standard_t(4, (96, columns)) * 0.05).astype(np.float32)
        codes, scales = quantization.quantize_int8_convrot_weight(torch.from_numpy(weight), group)
        ours, our_scales = round_rows_to_int8(rotated(weight, group))
        # Scales may differ in a last bit where PyTorch's matrix library adds in another order.
        np.testing.assert_allclose(our_scales, scales.numpy(), rtol=2e-6)
        assert (ours != codes.numpy()).sum() <= 2
        if columns % 64 == 0:
            packed, scales = w4a4.quantize_convrot_w4a4_weight(torch.from_numpy(weight), group)
            _, ours, our_scales = round_rows_to_int4(rotated(weight, group))
            np.testing.assert_allclose(our_scales, scales.numpy(), rtol=2e-6)
            assert (ours != packed.numpy()).sum() <= 2
    plain, scales = quantization.quantize_int8_rowwise(torch.from_numpy(weight))
    np.testing.assert_array_equal(round_rows_to_int8(weight)[0], plain.numpy())
    np.testing.assert_array_equal(round_rows_to_int8(weight)[1], scales.numpy())


def marker(tensors, stem):
    return json.loads(bytes(tensors[f"{stem}.comfy_quant"]))


def test_an_int8_file_holds_what_comfyui_reads(models, tmp_path):
    path = tmp_path / "m.safetensors"
    report = export_model(models.quantized("sharded"), "comfy", path)
    tensors = load_file(path)
    entries = {t.name: t for t in report.tensors}
    with open_quantized(models.quantized("sharded")) as model:
        weight = model[f"{Q}.weight"].dequantize()
        codes, scales = round_rows_to_int8(rotated(weight, 64))
        np.testing.assert_array_equal(tensors[f"{Q}.weight"], codes)
        np.testing.assert_array_equal(tensors[f"{Q}.weight_scale"], scales)
        assert marker(tensors, Q) == {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
        assert marker(tensors, NARROW.removesuffix(".weight")) == {"format": "int8_tensorwise"}  # 200 is 8 x 25
        np.testing.assert_array_equal(tensors[NARROW], round_rows_to_int8(model[NARROW].dequantize())[0])
        assert marker(tensors, "transformer_blocks.0.ff.net.2")["convrot_groupsize"] == 256
        back = rotated(codes * scales, 64)
        error = 10 * np.log10((weight.astype(float) ** 2).sum() / ((back.astype(float) - weight) ** 2).sum())
        assert entries[f"{Q}.weight"].sqnr_db == pytest.approx(error, abs=0.01)
        assert error > 38
        for name, tensor in model.items():
            if tensor.kept:
                assert tensors[name].tobytes() == bytes(tensor.bytes_view())
                assert entries[name].exact
    assert tensors["transformer_blocks.0.conv.weight"].shape == (64, 32, 3, 3)
    assert entries["transformer_blocks.0.conv.weight"].written_as == "bfloat16"
    assert report.nbytes == sum(a.nbytes for a in tensors.values())
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_w4a4_file_packs_two_columns_a_byte(models, tmp_path):
    path = tmp_path / "m.safetensors"
    report = export_model(models.quantized("dit", scale_format="float16"), "comfy", path, weight_type="convrot_w4a4")
    tensors = load_file(path)
    with open_quantized(models.quantized("dit", scale_format="float16")) as model:
        _, packed, scales = round_rows_to_int4(rotated(model[f"{Q}.weight"].dequantize(), 64))
    np.testing.assert_array_equal(tensors[f"{Q}.weight"], packed)
    np.testing.assert_array_equal(tensors[f"{Q}.weight_scale"], scales)
    assert tensors[f"{Q}.weight"].shape == (128, 64)
    assert marker(tensors, Q) == {"format": "convrot_w4a4", "convrot_groupsize": 64}
    entries = {t.name: t for t in report.tensors}
    assert (entries[NARROW].written_as, entries[NARROW].reason) == ("float16", "rows of 200 are no multiple of 64")
    assert any("4 bits" in line for line in report.remarks)
    with pytest.raises(QuantizationError, match=r"convrot_w4a4.*one scale per row"):
        export_model(
            models.quantized("dit", scale_format="float16"),
            "comfy",
            tmp_path / "b.safetensors",
            weight_type="convrot_w4a4",
            min_sqnr_db=30,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_comfy_kitchen_runs_the_file(models, tmp_path):
    int8 = pytest.importorskip("comfy_kitchen.tensor.int8")
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.safetensors"
    export_model(models.quantized("dit", scale_format="float16"), "comfy", path)
    tensors = load_file(path)
    params = int8.TensorWiseINT8Layout.Params(
        scale=torch.from_numpy(tensors[f"{Q}.weight_scale"]), orig_dtype=torch.float32, orig_shape=(128, 128),
        convrot=True, convrot_groupsize=64,
    )  # fmt: skip
    found = int8.TensorWiseINT8Layout.dequantize(torch.from_numpy(tensors[f"{Q}.weight"]), params).numpy()
    with open_quantized(models.quantized("dit", scale_format="float16")) as model:
        weight = model[f"{Q}.weight"].dequantize()
    assert 10 * np.log10((weight**2).sum() / ((found - weight) ** 2).sum()) > 38


def test_what_comfy_does_not_have_is_refused(models, tmp_path):
    model = models.quantized("mixed")
    with pytest.raises(ConfigurationError, match="it has int8_tensorwise, convrot_w4a4"):
        export_model(model, "comfy", tmp_path / "m.safetensors", weight_type="Q4_K")
    with pytest.raises(ConfigurationError, match="option of gguf"):
        export_model(model, "comfy", tmp_path / "m.safetensors", convolutions=True)
    with pytest.raises(OutputError, match=r"must end in \.safetensors"):
        export_model(model, "comfy", tmp_path / "m")
    assert not list(tmp_path.iterdir())
