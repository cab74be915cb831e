"""Scale format k from the plan to the file and back, with the widths that do not have it."""

import numpy as np
import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, open_checkpoint, open_quantized, quantize_tensor

SIZES = {2: 16, 4: 32}
LAYOUTS = {2: (16, "k"), 4: (32, "k"), 8: (64, "float16")}


@pytest.mark.parametrize("bits", SIZES)
def test_the_plan_is_what_is_stored_and_read_back(models, bits):
    settings = {"bit_width": bits, "group_size": SIZES[bits], "scale_format": "k", "method": "uls", "min_accuracy": 0.0}
    folder = models.quantized("dit", **settings)
    rows = {r.name: r for r in ArrowQuantV2(DiffusionQuantConfig(**settings)).plan(models.dit).rows}
    n_found = 0
    with open_quantized(folder, "full") as model, open_checkpoint(models.dit) as checkpoint:
        for name, tensor in model.items():
            assert rows[name].nbytes >= tensor.nbytes or tensor.bit_width > rows[name].bit_width
            if tensor.bit_width == 16:
                assert rows[name].scale_format == ""
                continue
            size, scales = LAYOUTS[tensor.bit_width]
            assert (tensor.group_size, tensor.grid) == (size, "k" if scales == "k" else "minimum")
            if tensor.bit_width == rows[name].bit_width:
                assert rows[name].nbytes == tensor.nbytes
                assert (rows[name].group_size, rows[name].scale_format) == (size, scales)
            weight = checkpoint.read_rows(name, 0, checkpoint.entries[name].rows).reshape(tensor.shape)
            expected = quantize_tensor(weight, tensor.bit_width, size, "uls", scales)
            np.testing.assert_array_equal(model.dequantize(name), expected.dequantize())
            n_found += scales == "k"
    assert n_found > 10
    assert ArrowQuantV2().validate_quality(models.dit, folder).passed


def test_a_fallback_takes_the_next_groups_that_the_format_has(models, tmp_path):
    config = DiffusionQuantConfig(
        bit_width=2, group_size=16, scale_format="k", method="uls", min_accuracy=0.9995, fail_fast=False
    )
    result = ArrowQuantV2(config).quantize_diffusion_model(models.dit, tmp_path / "model")
    chains = set()
    for layer in result.layers:
        found = [(a.bit_width, a.group_size, a.scale_format) for a in layer.attempts]
        assert found == [(b, *LAYOUTS[b]) for b in (2, 4, 8)][-len(found) :] or not found
        if found:
            assert (layer.bit_width, layer.group_size, layer.scale_format) == found[-1]
        chains.add(len(found))
    assert 3 in chains
