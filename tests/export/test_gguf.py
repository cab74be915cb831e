"""GGUF: blocks worked out by hand, files bit by bit against the `gguf` package's own decoder, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import ConfigurationError, OutputError, QuantizationError, export_model, open_quantized
from arrowquant_nb._kernels import k_format
from arrowquant_nb._kernels.numpy_rows import pack_codes, unpack_codes
from arrowquant_nb.api import ArrowQuantV2, quantize_tensor
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.export.gguf_blocks import BLOCK_WEIGHTS, blocks_of_codes, blocks_of_values, row_nbytes
from arrowquant_nb.export.gguf_file import architecture
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor
from tests.conftest import dit_tensors, write_checkpoint

gguf = pytest.importorskip("gguf")

Q = "transformer_blocks.0.attn1.to_q.weight"
FF = "transformer_blocks.0.ff.net.2.weight"  # rows of 512
CONV = "transformer_blocks.0.conv.weight"
NOTHING = LayerStatistics(0, 0.0, 0.0, 0.0, 0.0)


def decoded(blocks, kind):
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


def k_tensor(bit_width, group_size, d, dmin, sc, mn, codes):
    """A one-row tensor of grid k from its numbers."""
    n = k_format.INTEGER_BITS[bit_width]
    scales, minima = (
        k_format.join(np.float32([floats]), np.uint8([integers]), n, wide=False)
        for floats, integers in ((d, sc), (dmin, mn))
    )
    packed = pack_codes(np.uint8([codes]), bit_width)
    shape = (1, len(codes))
    return QuantizedTensor(packed, scales, minima, shape, bit_width, group_size, "uls", "k", "float32", NOTHING)


def test_a_q4_k_block_worked_out_by_hand():
    sc, mn = [1, 2, 3, 4, 5, 6, 7, 63], [0, 10, 20, 30, 40, 50, 60, 63]
    codes = [0] * 256
    codes[0], codes[32], codes[255] = 5, 9, 15
    block = blocks_of_codes(k_tensor(4, 32, [2.0], [0.5], sc, mn, codes), "Q4_K")[0]
    assert len(block) == 144
    assert bytes(block[:4]) == np.float16([2.0, 0.5]).tobytes()
    # sc[j] in the low 6 bits, bits 4 and 5 of sc[j + 4] above them
    assert block[4:8].tolist() == [1, 2, 3, 4 | 3 << 6]
    assert block[8:12].tolist() == [0 | 2 << 6, 10 | 3 << 6, 20 | 3 << 6, 30 | 3 << 6]
    assert block[12:16].tolist() == [5 | 8 << 4, 6 | 2 << 4, 7 | 12 << 4, 15 | 15 << 4]
    assert (block[16], block[16 + 127]) == (5 | 9 << 4, 15 << 4)  # weights 0 and 32 share a byte
    values = decoded(block[None], "Q4_K")[0]
    assert (values[0], values[32], values[255]) == (2 * 1 * 5 - 0, 2 * 2 * 9 - 5, 2 * 63 * 15 - 31.5)


def test_a_q2_k_block_worked_out_by_hand():
    sc, mn = list(range(16)), list(range(15, -1, -1))
    codes = [0] * 256
    codes[0], codes[32], codes[64], codes[96], codes[255] = 1, 2, 3, 1, 3
    block = blocks_of_codes(k_tensor(2, 16, [4.0], [0.25], sc, mn, codes), "Q2_K")[0]
    assert len(block) == 84
    assert block[:16].tolist() == [j | (15 - j) << 4 for j in range(16)]
    assert (block[16], block[16 + 63]) == (1 | 2 << 2 | 3 << 4 | 1 << 6, 3 << 6)
    assert bytes(block[80:]) == np.float16([4.0, 0.25]).tobytes()
    assert decoded(block[None], "Q2_K")[0, 32] == 4 * 2 * 2 - 0.25 * 13


def test_a_q6_k_block_worked_out_by_hand():
    values = np.zeros((1, 256), np.float32)
    values[0, :16] = 32.0  # the group's largest, code -32 under a scale of -1
    values[0, 1] = -31.0
    values[0, 64] = 16.0
    block = blocks_of_values(values, "Q6_K")[0]
    assert len(block) == 210
    assert np.frombuffer(block[208:].tobytes(), np.float16)[0] == np.float16(1 / 128)
    assert block[192:208].view(np.int8).tolist() == [-128, 0, 0, 0, -64] + [0] * 11
    # code + 32 = 0 at weights 0 and 64; 63 = 15 low, 3 high at weight 1, beside weight 65
    assert (block[0], block[1]) == (0, 15)
    assert block[128 + 1] & 3 == 3
    np.testing.assert_array_equal(decoded(block[None], "Q6_K"), values)


def test_q4_0_and_q8_0_take_over_centred_codes():
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    scales, shape = np.float16([[0.5]]), (1, 32)
    four = QuantizedTensor(
        pack_codes(codes, 4), scales, np.uint8([[8]]), shape, 4, 32, "rtn", "zero_point", "float32", NOTHING
    )
    block = blocks_of_codes(four, "Q4_0")[0]
    assert bytes(block) == np.float16(0.5).tobytes() + bytes(j | j << 4 for j in range(16))
    np.testing.assert_array_equal(bits(decoded(block[None], "Q4_0")), bits(four.dequantize()))
    eight = QuantizedTensor(
        codes * 17, scales, np.uint8([[128]]), shape, 8, 32, "rtn", "zero_point", "float32", NOTHING
    )
    block = blocks_of_codes(eight, "Q8_0")[0]
    assert block[2:].view(np.int8).tolist() == [int(c) - 128 for c in codes[0] * 17]
    np.testing.assert_array_equal(bits(decoded(block[None], "Q8_0")), bits(eight.dequantize()))
    two = QuantizedTensor(
        pack_codes(codes % 4, 2), scales, np.uint8([[2]]), shape, 2, 32, "rtn", "zero_point", "float32", NOTHING
    )
    np.testing.assert_array_equal(bits(decoded(blocks_of_codes(two, "Q4_0"), "Q4_0")), bits(two.dequantize()))


@settings(max_examples=25)
@given(
    st.sampled_from([(4, 32, "k", "Q4_K"), (4, 64, "k", "Q4_K"), (2, 16, "k", "Q2_K"), (2, 32, "k", "Q2_K"),
                     (4, 32, "float16", "Q4_1"), (2, 64, "float16", "Q4_1"), (4, 256, "float16", "Q4_1")]),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-3, 1.0, 30.0]),
)  # fmt: skip
def test_taken_over_codes_decode_to_the_same_bits(case, rows, seed, size):
    bit_width, group_size, scale_format, kind = case
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, (rows, 512)) * size).astype(np.float32)
    weight[rng.random((rows, 512)) < 0.1] = 0
    weight[0, :256] = 0
    tensor = quantize_tensor(weight, bit_width, group_size, scale_format=scale_format)
    found = blocks_of_codes(tensor, kind)
    assert found.shape == (rows, row_nbytes(kind, 512))
    np.testing.assert_array_equal(bits(decoded(found, kind)), bits(tensor.dequantize()))


@pytest.mark.parametrize(
    ("kind", "least_db"), [("Q8_0", 40), ("Q6_K", 31), ("Q4_1", 18), ("Q4_0", 17), ("Q4_K", 20), ("Q2_K", 9)]
)
def test_rounded_values_are_near(kind, least_db):
    weight = np.random.default_rng(0).standard_normal((16, 512)).astype(np.float32)
    weight[3], weight[4] = 0, 1e-6
    error = decoded(blocks_of_values(weight, kind), kind) - weight
    assert 10 * np.log10((weight**2).sum() / (error**2).sum()) > least_db
    assert not error[3].any()
    assert BLOCK_WEIGHTS[kind] in (32, 256)


def read(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values_of(tensor):
    if tensor.tensor_type.name in ("F32", "F16", "I64"):
        return tensor.data
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Layers with rows of 256 and 512, so that the K types fit."""
    tensors = {n: a for n, a in dit_tensors(3, width=256, n_blocks=1).items() if "attn2" not in n}
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "wide", tensors)


def quantized(source, path, **given):
    config = DiffusionQuantConfig(min_accuracy=0.0, **given)
    ArrowQuantV2(config).quantize_diffusion_model(source, path, calibration="none")
    return path


def test_values_beyond_a_float16_scale_name_the_layer_and_the_fix(tmp_path):
    tensors = dit_tensors(3, width=256, n_blocks=1)
    name = next(n for n in tensors if n.endswith("attn1.to_q.weight"))
    tensors[name] = tensors[name].astype(np.float32) * np.float32(1e9)
    model = quantized(write_checkpoint(tmp_path / "large", tensors), tmp_path / "m", bit_width=8, method="rtn")
    with pytest.raises(QuantizationError, match=rf"{name}: Q8_0 cannot hold.*'{name}': 16"):
        export_model(model, "gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("bit_width", "group_size", "kind"), [(4, 32, "Q4_K"), (2, 16, "Q2_K")])
def test_a_k_model_is_written_without_rounding(wide, tmp_path, bit_width, group_size, kind):
    model = quantized(wide, tmp_path / "m", bit_width=bit_width, group_size=group_size, scale_format="k", method="uls")
    report = export_model(model, "gguf", tmp_path / "m.gguf")
    written = {t.name: t for t in report.tensors}
    found = read(tmp_path / "m.gguf")
    n_exact = 0
    with open_quantized(model) as opened:
        for name, tensor in opened.items():
            if tensor.grid == "k" and len(tensor.shape) == 2:
                assert (written[name].written_as, written[name].exact) == (kind, True)
                assert found[name].tensor_type.name == kind
                np.testing.assert_array_equal(bits(values_of(found[name])), bits(tensor.dequantize()), err_msg=name)
                n_exact += 1
    assert n_exact >= 6
    assert written["transformer_blocks.0.norm1.linear.weight"].written_as == "Q8_0"


def test_short_rows_of_a_k_model_keep_their_codes_in_q4_1(models, tmp_path):
    """Blocks of 256 do not fill rows of 128: d sc and dmin mn are rounded to float16, codes are not."""
    given = {"bit_width": 4, "group_size": 32, "scale_format": "k", "method": "uls"}
    report = export_model(models.quantized("dit", **given), "gguf", tmp_path / "m.gguf")
    entry = next(t for t in report.tensors if t.name == Q)
    assert (entry.written_as, entry.exact) == ("Q4_1", False)
    assert entry.sqnr_db > 60
    assert "codes taken over" in entry.reason
    with open_quantized(models.quantized("dit", **given)) as model:
        ((_, tile),) = model[Q].tiles()
        codes = unpack_codes(tile.packed, 4, 128).reshape(-1, 2, 16)
        blocks = read(tmp_path / "m.gguf")[Q].data.reshape(-1, 20)
        np.testing.assert_array_equal(blocks[:, 4:], codes[:, 0] | codes[:, 1] << 4)


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """The narrow INT4 model, its report and its file."""
    path = tmp_path_factory.mktemp("gguf") / "dit.gguf"
    return export_model(models.quantized("dit", scale_format="float16"), "gguf", path), path


def test_every_tensor_is_what_the_report_says(models, written):
    report, path = written
    found = read(path)
    with open_quantized(models.quantized("dit", scale_format="float16")) as model:
        for entry in report.tensors:
            tensor, got = model[entry.name], found[entry.name]
            assert got.tensor_type.name == entry.written_as
            assert got.n_bytes == entry.nbytes
            wanted = np.asarray(tensor.dequantize(), np.float64)
            values = np.asarray(values_of(got), np.float64).reshape(wanted.shape)
            if entry.exact:
                np.testing.assert_array_equal(values, wanted, err_msg=entry.name)
            else:
                error = ((values - wanted) ** 2).sum()
                assert entry.sqnr_db == pytest.approx(10 * np.log10((wanted**2).sum() / error), abs=1e-3)
                assert entry.reason
    kinds = {t.name: t.written_as for t in report.tensors}
    assert kinds[Q] == "Q4_1"
    assert kinds["transformer_blocks.0.attn1.to_q.bias"] == "F32"
    assert kinds["position_ids"] == "I64"
    assert kinds[CONV] == "F16"
    assert kinds["transformer_blocks.0.attn2.to_k.weight"] == "F16"  # rows of 200
    assert "nothing" in report.not_held[0]
    assert "left out" in report.not_held[0]
    assert any("integer tensors" in remark for remark in report.remarks)


def test_the_file_says_what_it_is(written):
    fields = gguf.GGUFReader(written[1]).fields
    assert fields["general.architecture"].contents() == "dittransformer2dmodel"
    assert fields["general.quantization_version"].contents() == 2
    assert fields["general.file_type"].contents() == 3
    assert fields["arrowquant.class_name"].contents() == "DiTTransformer2DModel"
    assert architecture("FluxTransformer2DModel") == "flux"
    assert architecture("SD3Transformer2DModel") == "sd3"
    assert architecture(None) == "unknown"


def test_convolutions_become_matrices_with_their_shape_recorded(models, tmp_path):
    export_model(models.quantized("dit", scale_format="float16"), "gguf", tmp_path / "c.gguf", convolutions=True)
    reader = gguf.GGUFReader(tmp_path / "c.gguf")
    assert reader.fields[f"comfy.gguf.orig_shape.{CONV}"].contents() == [64, 32, 3, 3]
    tensor = next(t for t in reader.tensors if t.name == CONV)
    with open_quantized(models.quantized("dit", scale_format="float16")) as model:
        np.testing.assert_array_equal(values_of(tensor).reshape(64, 32, 3, 3), model[CONV].dequantize())


def test_transforms_are_rounded_and_said(models, tmp_path):
    rotated = {"rotation": "hadamard", "low_rank": 4, "seed": 11, "layer_bit_widths": {"*attn2.to_k.weight": 16}}
    report = export_model(models.quantized("dit", **rotated), "gguf", tmp_path / "r.gguf")
    entries = {t.name: t for t in report.tensors}
    assert (entries[FF].written_as, entries[Q].written_as) == ("Q6_K", "Q8_0")
    assert entries[FF].sqnr_db > 30
    assert "a rotation and a low-rank branch" in entries[FF].reason
    assert any("a rotation" in line for line in report.warnings)


def test_a_type_is_taken_where_it_has_the_bits(models, tmp_path):
    report = export_model(
        models.quantized("dit", scale_format="float16"), "gguf", tmp_path / "a.gguf", weight_type="Q4_K"
    )
    entries = {t.name: t for t in report.tensors}
    assert entries[FF].written_as == "Q4_K"
    assert entries["transformer_blocks.0.norm1.linear.weight"].written_as == "Q8_0"  # INT8 keeps its bits
    assert "was asked for" in entries[FF].reason
    two = models.quantized("dit", bit_width=2, method="r2q", min_accuracy=0.0)
    with pytest.raises(QuantizationError, match=r"less than 25\.0 dB.*Q2_K.*min_sqnr_db"):
        export_model(two, "gguf", tmp_path / "b.gguf", weight_type="Q2_K", min_sqnr_db=25.0)
    assert not (tmp_path / "b.gguf").exists()
    export_model(two, "gguf", tmp_path / "b.gguf", weight_type="Q2_K")
    for bad in ("Q3_K", "int8_tensorwise"):
        with pytest.raises(ConfigurationError, match="it has Q8_0"):
            export_model(two, "gguf", tmp_path / "d.gguf", weight_type=bad)
    with pytest.raises(ConfigurationError, match="leave weight_type out"):
        export_model(two, "safetensors", tmp_path / "d", weight_type="Q8_0")
    with pytest.raises(ConfigurationError, match="option of gguf"):
        export_model(two, "diffusers", tmp_path / "d", convolutions=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_a_file_is_named_and_never_overwritten_unasked(models, tmp_path):
    model = models.quantized("mixed")
    with pytest.raises(OutputError, match=r"must end in \.gguf"):
        export_model(model, "gguf", tmp_path / "model.bin")
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(OutputError, match="overwrite=True"):
        export_model(model, "gguf", path)
    assert path.read_text() == "mine"
    export_model(model, "gguf", path, overwrite=True)
    first = path.read_bytes()
    export_model(model, "gguf", path, overwrite=True)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_bfloat16_and_three_dtypes_go_through(models, tmp_path):
    report = export_model(
        models.quantized("mixed", layer_bit_widths={"layers.0.weight": 16}), "gguf", tmp_path / "m.gguf"
    )
    kinds = {t.name: t.written_as for t in report.tensors}
    assert kinds["layers.0.weight"] == "BF16"
    assert kinds["layers.0.bias"] == "F32"
    found = read(tmp_path / "m.gguf")["layers.0.weight"]
    with open_quantized(models.quantized("mixed", layer_bit_widths={"layers.0.weight": 16})) as model:
        np.testing.assert_array_equal(values_of(found), model["layers.0.weight"].dequantize("float32"))


def test_a_name_that_readers_cannot_take_is_refused(tmp_path):
    name = "blocks." + "x" * 120 + ".weight"
    source = write_checkpoint(tmp_path / "s", {name: np.ones((64, 64), np.float32)})
    model = quantized(source, tmp_path / "m")
    with pytest.raises(OutputError, match="127 bytes"):
        export_model(model, "gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_missing_package_is_named(models, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigurationError, match=r"arrowquant_nb\[export\]"):
        export_model(models.quantized("mixed"), "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
