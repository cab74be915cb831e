"""Rounded inputs, equalization and channel means: what the diffusers folder carries, and what other targets say."""

import numpy as np
import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, export_model, open_exported, open_quantized

TARGETS = {"safetensors": "floats", "gguf": "m.gguf", "comfy": "m.safetensors"}
pytestmark = pytest.mark.usefixtures("one_thread")


def quantized(path, calibration, **settings):
    config = DiffusionQuantConfig(calibration_samples=4, min_accuracy=0.0, method="rtn", **settings)
    ArrowQuantV2(config).quantize_diffusion_model("digits-dit", path, calibration=calibration)
    return path


@pytest.fixture(scope="module")
def tabled(tmp_path_factory):
    """Digits with 4-bit inputs on stored grids, equalized and centred where that helps."""
    return quantized(tmp_path_factory.mktemp("tabled") / "model", None, activation_bit_width=4)


@pytest.fixture(scope="module")
def per_token(tmp_path_factory):
    """Digits with 8-bit inputs and no calibration."""
    return quantized(tmp_path_factory.mktemp("tokens") / "model", "none", activation_bit_width=8)


def stored_scales(model):
    """Those beside the codes; folded ones are in the weights."""
    return {n: s for n, s in model.spatial.equalization_scales.items() if n not in model.spatial.folded}


def test_the_diffusers_folder_carries_all_of_it(tabled, tmp_path):
    report = export_model(tabled, "diffusers", tmp_path / "out")
    assert report.not_held == ()
    folder = open_exported(tmp_path / "out")
    layers = folder.settings.layers
    with open_quantized(tabled) as model:
        assert model.time_aware is not None
        assert folder.settings.time_aware == model.time_aware
        assert {n: layer.activation_bit_width for n, layer in layers.items() if layer.activation_bit_width} == dict(
            model.rounded_inputs
        )
        scales, means = stored_scales(model), model.spatial.activation_means
        assert scales
        assert means
        assert {n for n, layer in layers.items() if layer.equalization} == set(scales)
        for name, values in scales.items():
            np.testing.assert_array_equal(folder.array(f"{name}.equalization").astype(np.float64), values)
        for name, values in means.items():
            np.testing.assert_array_equal(folder.array(f"{name}.activation_means"), np.float32(values))
        for name in layers:
            np.testing.assert_array_equal(folder[name].dequantize(), model[name].dequantize())


def test_inputs_rounded_per_token_are_carried_too(per_token, tmp_path):
    export_model(per_token, "diffusers", tmp_path / "out")
    settings = open_exported(tmp_path / "out").settings
    assert settings.time_aware is None
    with open_quantized(per_token) as model:
        widths = {name: layer.activation_bit_width for name, layer in settings.layers.items()}
        assert {name: bits for name, bits in widths.items() if bits} == dict(model.rounded_inputs)
        assert set(widths.values()) == {0, 8}


def test_other_targets_say_what_they_do_not_hold(tabled, per_token, tmp_path):
    for target, output in TARGETS.items():
        report = export_model(tabled, target, tmp_path / output)
        assert "activation grids per timestep of 24 layers" in report.not_held[0]
        assert "channel means" in report.not_held[1]
        assert set(report.not_held) <= set(report.warnings)
        report = export_model(per_token, target, tmp_path / output, overwrite=True)
        assert "rounded per token is not held" in report.not_held[0]
    with open_quantized(tabled) as model:
        name = next(iter(stored_scales(model)))
    report = export_model(tabled, "gguf", tmp_path / "again.gguf")
    entry = next(t for t in report.tensors if t.name == name)
    assert entry.reason == "GGUF cannot hold column scales"
    assert entry.sqnr_db > 25
