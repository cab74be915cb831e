"""A model folder of ours as the source of another run."""

import shutil

import numpy as np
import pytest

from arrowquant_nb import (
    ArrowQuantV2,
    CheckpointError,
    DiffusionQuantConfig,
    ValidationError,
    open_checkpoint,
    open_quantized,
)
from tests.conftest import tree

LAYER = "transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def float_model(models):
    return models.quantized("dit", layer_bit_widths={"*": 16})


def test_a_model_whose_layers_are_all_kept_is_a_float_model(models, float_model):
    with open_checkpoint(models.dit) as original, open_checkpoint(float_model) as copy:
        assert (copy.kind, copy.class_name) == ("parquet", original.class_name)
        assert list(copy.entries) == list(original.entries)
        for name, entry in original.entries.items():
            assert (copy.entries[name].shape, copy.entries[name].dtype) == (entry.shape, entry.dtype)
            assert copy.read_bytes(name).tobytes() == original.read_bytes(name).tobytes()
            assert copy.hash_tensor(name) == original.hash_tensor(name)


def test_rows_can_be_read_into_a_buffer(models, float_model):
    with open_checkpoint(models.dit) as original, open_checkpoint(float_model) as copy:
        out = np.zeros(128 * 128 * 4, np.uint8)
        rows = copy.read_rows(LAYER, 5, 7, out)
        assert np.shares_memory(rows, out)
        np.testing.assert_array_equal(rows, original.read_rows(LAYER, 5, 7))
        np.testing.assert_array_equal(copy.read_rows(LAYER, 0, 128), original.read_rows(LAYER, 0, 128))


def test_a_float_model_quantizes_to_the_same_data_as_its_original(models, float_model, tmp_path):
    ArrowQuantV2().quantize_diffusion_model(float_model, tmp_path / "model")
    with open_quantized(tmp_path / "model") as again, open_quantized(models.quantized("dit")) as direct:
        assert list(again) == list(direct)
        for name in direct:
            np.testing.assert_array_equal(again.dequantize(name), direct.dequantize(name))
    assert ArrowQuantV2().validate_quality(models.dit, tmp_path / "model").passed
    assert ArrowQuantV2().validate_quality(float_model, tmp_path / "model").passed


def test_a_quantized_source_is_refused_with_the_way_to_insist(models, tmp_path):
    with pytest.raises(CheckpointError, match="requantize=True"):
        ArrowQuantV2().quantize_diffusion_model(models.quantized("dit"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_quantized_source_is_taken_when_asked_for(models, tmp_path):
    config = DiffusionQuantConfig(bit_width=8, min_accuracy=0.9)
    ArrowQuantV2(config).quantize_diffusion_model(models.quantized("dit"), tmp_path / "model", requantize=True)
    with open_quantized(models.quantized("dit")) as first, open_quantized(tmp_path / "model") as second:
        assert second[LAYER].bit_width == 8
        error = np.abs(second.dequantize(LAYER) - first.dequantize(LAYER)).max()
        assert error < 0.01 * np.abs(first.dequantize(LAYER)).max()
    assert ArrowQuantV2().validate_quality(models.quantized("dit"), tmp_path / "model").passed


def test_a_damaged_source_model_is_an_error_before_anything_is_stored(float_model, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(float_model, source)
    raw = bytearray((source / "kept.parquet").read_bytes())
    raw[2000] ^= 1
    (source / "kept.parquet").write_bytes(raw)
    with pytest.raises(ValidationError, match=r"kept\.parquet"):
        ArrowQuantV2().quantize_diffusion_model(source, tmp_path / "model")
    assert not (tmp_path / "model" / "manifest.json").exists()


def test_a_copied_model_gives_the_same_bytes(float_model, tmp_path):
    shutil.copytree(float_model, tmp_path / "a" / float_model.name)
    ArrowQuantV2().quantize_diffusion_model(float_model, tmp_path / "one")
    ArrowQuantV2().quantize_diffusion_model(tmp_path / "a" / float_model.name, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
