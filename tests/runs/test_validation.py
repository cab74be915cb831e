"""Original against quantized: what must pass, and everything that must not."""

import math

import numpy as np
import pytest

from arrowquant_nb import ArrowQuantV2, ModelNotFoundError
from tests.conftest import dit_tensors, write_checkpoint

Q = "transformer_blocks.0.attn1.to_q.weight"


def validate(tensors, tmp_path, model):
    return ArrowQuantV2().validate_quality(write_checkpoint(tmp_path / "other", tensors), model)


@pytest.mark.parametrize("name", ["dit", "sharded", "mixed"])
def test_a_model_passes_against_its_own_original(models, name):
    report = ArrowQuantV2().validate_quality(getattr(models, name), models.quantized(name))
    assert report.passed
    assert report.failures == ()
    assert {t.status for t in report.tensors} == {"equal", "close"}
    assert 0.98 < report.cosine_similarity < 1
    assert 15 < report.sqnr_db < 60


def test_figures_are_those_of_a_plain_float64_comparison(models):
    from arrowquant_nb import open_checkpoint, open_quantized

    report = {t.name: t for t in ArrowQuantV2().validate_quality(models.dit, models.quantized("dit")).tensors}
    with open_checkpoint(models.dit) as source, open_quantized(models.quantized("dit")) as model:
        w = source.read_rows(Q, 0, 128).astype(np.float64)
        q = model.dequantize(Q).astype(np.float64)
    assert report[Q].sqnr_db == pytest.approx(10 * math.log10((w**2).sum() / ((q - w) ** 2).sum()))
    assert report[Q].cosine == pytest.approx((w * q).sum() / math.sqrt((w**2).sum() * (q**2).sum()))
    assert report[Q].max_abs_error == np.abs(q - w).max()
    assert report["proj_out_2.weight"].sqnr_db == math.inf


def failures(report):
    assert not report.passed
    return {t.name: t.status for t in report.failures}


def test_a_missing_and_an_extra_tensor_are_failures(models, tmp_path):
    tensors = dit_tensors()
    tensors["proj_out_3.weight"] = tensors.pop("proj_out_2.weight")
    assert failures(validate(tensors, tmp_path, models.quantized("dit"))) == {
        "proj_out_3.weight": "missing",
        "proj_out_2.weight": "extra",
    }


@pytest.mark.parametrize("name", ["proj_out_2.weight", "position_ids", "step", "transformer_blocks.0.attn1.to_q.bias"])
def test_one_changed_bit_of_a_kept_tensor_is_a_failure(models, tmp_path, name):
    tensors = dit_tensors()
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[:1].view(np.uint8)[0] ^= 1
    assert failures(validate(tensors, tmp_path, models.quantized("dit"))) == {name: "different"}


def test_a_kept_zero_of_the_other_sign_is_a_failure(tmp_path):
    tensors = dit_tensors(n_blocks=1)
    tensors["pos_embed.proj.bias"][:] = 0
    source = write_checkpoint(tmp_path / "source", tensors)
    ArrowQuantV2().quantize_diffusion_model(source, tmp_path / "model")
    tensors["pos_embed.proj.bias"] = -tensors["pos_embed.proj.bias"]
    assert failures(validate(tensors, tmp_path, tmp_path / "model")) == {"pos_embed.proj.bias": "different"}


def test_another_original_is_a_failure(models, tmp_path):
    found = failures(validate(dit_tensors(seed=9), tmp_path, models.quantized("dit")))
    assert found[Q] == "different"
    assert len(found) >= 18


def test_one_changed_row_of_a_quantized_tensor_is_a_failure(models, tmp_path):
    tensors = dit_tensors()
    tensors[Q] = tensors[Q].copy()
    tensors[Q][5] = tensors[Q][6]
    assert failures(validate(tensors, tmp_path, models.quantized("dit"))) == {Q: "different"}


@pytest.mark.parametrize("shape", [(64, 256), (127, 128), (128, 64, 2, 1)])
def test_another_shape_is_a_failure_that_names_both(models, tmp_path, shape):
    tensors = dit_tensors()
    tensors[Q] = np.resize(tensors[Q], shape)
    report = validate(tensors, tmp_path, models.quantized("dit"))
    assert failures(report) == {Q: "different"}
    [failed] = report.failures
    assert str(shape) in failed.sentence
    assert "(128, 128)" in failed.sentence


def test_another_dtype_of_a_kept_tensor_is_a_failure(models, tmp_path):
    tensors = dit_tensors()
    tensors["position_ids"] = tensors["position_ids"].astype(np.int32)
    assert failures(validate(tensors, tmp_path, models.quantized("dit"))) == {"position_ids": "different"}


def test_models_that_are_not_there_are_named(models, tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        ArrowQuantV2().validate_quality(tmp_path / "nowhere", models.quantized("dit"))
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        ArrowQuantV2().validate_quality(models.dit, tmp_path / "nowhere")


def test_all_kept_models_are_exact(models):
    report = ArrowQuantV2().validate_quality(models.dit, models.quantized("dit", layer_bit_widths={"*": 16}))
    assert report.passed
    assert {t.status for t in report.tensors} == {"equal"}
