"""compressed-tensors: words worked out by hand, the package's own unpacking, and transformers' own class."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from arrowquant_nb import ConfigurationError, export_model, open_quantized
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.export.compressed_tensors import _as_words

QUERY = "bert.encoder.layer.0.attention.self.query"
OUTPUT = "bert.encoder.layer.2.output.dense"  # rows of 512


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The text sample, quantized in a given way; each once."""
    root, made = tmp_path_factory.mktemp("lm"), {}

    def make(**given):
        key = json.dumps(given, sort_keys=True)
        if key not in made:
            made[key] = root / str(len(made))
            config = DiffusionQuantConfig(min_accuracy=0.0, **given)
            ArrowQuantV2(config).quantize_diffusion_model("docs-mlm", made[key], calibration="none")
        return made[key]

    return make


RTN = {"bit_width": 4, "method": "rtn", "group_size": 64, "scale_format": "float16"}
MINIMA = {"bit_width": 4, "group_size": 64, "scale_format": "float16"}


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_words_hold_codes_from_the_low_bits_up():
    packed = np.uint8([[0x21, 0x43, 0x65, 0x87, 0xA9]])  # codes 1, 2, 3, ... of four bits
    assert _as_words(packed).tolist() == [[0x87654321 - 2**32, 0xA9]]


@pytest.mark.torch
def test_codes_are_taken_over_with_their_zero_points(quantized, tmp_path):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    torch = pytest.importorskip("torch")
    report = export_model(quantized(**RTN), "compressed-tensors", tmp_path / "out")
    tensors = weights_of(tmp_path / "out")
    entries = {t.name: t for t in report.tensors}
    with open_quantized(quantized(**RTN)) as model:
        for stem in (QUERY, OUTPUT):
            rows, columns = tensors[f"{stem}.weight_shape"].tolist()
            scales = tensors[f"{stem}.weight_scale"].astype(np.float32)
            codes, zeros = (
                helpers.unpack_from_int32(
                    torch.from_numpy(tensors[f"{stem}.{part}"]), 4, shape, packed_dim=axis
                ).numpy()
                for part, shape, axis in (
                    ("weight_packed", (rows, columns), 1),
                    ("weight_zero_point", (rows, columns // 64), 0),
                )
            )
            found = (codes.astype(np.float32) - np.repeat(zeros, 64, axis=1)) * np.repeat(scales, 64, axis=1)
            np.testing.assert_array_equal(found, model[f"{stem}.weight"].dequantize())
            assert entries[f"{stem}.weight"].written_as == "W4A16"
            assert entries[f"{stem}.weight"].sqnr_db > 65  # of products in float16
    assert report.nbytes == sum(a.nbytes for a in tensors.values())


def test_the_config_names_every_layer_once(quantized, tmp_path):
    two = {"bit_width": 2, "method": "rtn", "group_size": 32, "layer_bit_widths": {f"{OUTPUT}.weight": 8}}
    report = export_model(quantized(**two), "compressed-tensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["quantization_status"]) == ("compressed-tensors", "compressed")
    widths = {}
    for group in config["config_groups"].values():
        assert group["weights"]["strategy"] == "group"
        assert (group["format"], group["input_activations"]) == ("pack-quantized", None)
        for layer in group["targets"]:
            assert layer not in widths
            widths[layer] = group["weights"]["num_bits"], group["weights"]["group_size"]
    assert widths[OUTPUT][0] == 8
    assert widths[QUERY] == (2, 32)
    assert {f"{layer}.weight" for layer in widths} == {t.name for t in report.tensors if t.written_as.startswith("W")}
    assert any("2-bit" in line for line in report.remarks)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "scheme", "least_db"),
    [(RTN, None, 60), (RTN, "W8A8", 30), (MINIMA, None, 38),
     ({"bit_width": 2, "method": "rtn", "group_size": 32}, None, 60)],
)  # fmt: skip
def test_transformers_loads_the_folder(quantized, tmp_path, settings, scheme, least_db):
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = quantized(**settings)
    export_model(source, "compressed-tensors", tmp_path / "out", weight_type=scheme)
    export_model(source, "safetensors", tmp_path / "floats")
    ids = torch.arange(40).reshape(2, 20) % 99

    def logits(folder):
        model = transformers.BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            return model(ids).logits.numpy()

    wanted, got = logits(tmp_path / "floats"), logits(tmp_path / "out")
    assert 10 * np.log10((wanted**2).sum() / max(((got - wanted) ** 2).sum(), 1e-30)) > least_db


def test_what_cannot_be_taken_over_is_rounded_to_eight_bits(quantized, tmp_path):
    report = export_model(quantized(**MINIMA), "compressed-tensors", tmp_path / "out")
    entry = next(t for t in report.tensors if t.name == f"{QUERY}.weight")
    assert (entry.written_as, entry.reason) == ("W8A16", "the format has no grid minimum")
    assert entry.sqnr_db > 40
    assert any("rounded to W8A16" in line for line in report.warnings)
    four = export_model(quantized(**MINIMA), "compressed-tensors", tmp_path / "four", weight_type="W4A16")
    entry = next(t for t in four.tensors if t.name == f"{QUERY}.weight")
    assert entry.written_as == "W4A16"
    assert 15 < entry.sqnr_db < 30


def test_other_models_and_schemes_are_refused(models, quantized, tmp_path):
    with pytest.raises(ConfigurationError, match="text models that transformers loads"):
        export_model(models.quantized("dit"), "compressed-tensors", tmp_path / "out")
    with pytest.raises(ConfigurationError, match="it has W4A16, W8A16, W8A8"):
        export_model(quantized(**RTN), "compressed-tensors", tmp_path / "out", weight_type="int8")
    assert not list(tmp_path.iterdir())
