"""Writing a quantized model back: weights at the end of float16 do not become infinite."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from arrowquant_nb import ArrowQuantV2, CheckpointError, DiffusionQuantConfig, dequantize_model, open_quantized
from arrowquant_nb.runs.dequantization import bytes_back
from tests.conftest import write_checkpoint

NAME = "transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def weight():
    values = np.random.default_rng(0).standard_normal((128, 256)) * 20000
    return np.clip(values, -65504, 65504).astype(np.float16)


@pytest.fixture(scope="module")
def quantized(weight, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    source = write_checkpoint(folder / "source", {NAME: weight})
    ArrowQuantV2(DiffusionQuantConfig(method="rtn")).quantize_diffusion_model(source, folder / "model")
    return folder / "model"


def test_weights_that_round_beyond_float16_come_back_as_its_largest(weight, quantized, tmp_path):
    with open_quantized(quantized) as model:
        exact = model.dequantize(NAME)
    beyond = np.abs(exact) >= 65520  # where float16 rounds to infinity
    assert beyond.any()
    (file,) = dequantize_model(quantized, tmp_path / "floats").rglob("*.safetensors")
    found = load_file(file)[NAME]
    assert np.isfinite(found).all()
    assert (np.abs(found[beyond]) == 65504).all()
    np.testing.assert_array_equal(found[~beyond], exact[~beyond].astype(np.float16))
    assert np.abs(found[beyond].astype(np.float32) - weight[beyond]).max() <= np.abs(exact - weight)[beyond].max()


def test_a_folded_weight_beyond_float16_is_refused_by_name(quantized):
    """Its columns were multiplied, so the weight itself may be out of range, not just what it rounds to."""
    with open_quantized(quantized) as model:
        model[NAME].folding = "its columns are multiplied"
        with pytest.raises(CheckpointError, match=r"to_q\.weight', folded, overflows .* fold_equalization false"):
            bytes_back(model, NAME)
