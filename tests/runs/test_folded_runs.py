"""Equalization folded by a run: the float model is what it was, no reader needs to know, and what changed is said."""

import numpy as np
import pytest
from conftest import tree

from arrowquant_nb import (
    ArrowQuantV2,
    DiffusionQuantConfig,
    dequantize_model,
    evaluate_sample,
    open_checkpoint,
    open_quantized,
    quantized_sample,
    samples,
)
from arrowquant_nb.runs.folding import LEAST_GAIN_DB, stored_folding
from arrowquant_nb.runs.layer_viewer import LayerViewer
from arrowquant_nb.runs.locating import locate_model

NAME = "digits-dit"
BLOCK = "transformer_blocks.0."
QUERY, VALUE, OUTPUT = f"{BLOCK}attn1.to_q.weight", f"{BLOCK}attn1.to_v.weight", f"{BLOCK}attn1.to_out.0.weight"
MODULATION, BIAS = f"{BLOCK}norm1.linear.weight", f"{BLOCK}norm1.linear.bias"
SETTINGS = {"calibration_samples": 4, "activation_bit_width": 4, "num_time_groups": 2}
pytestmark = pytest.mark.usefixtures("one_thread")


def run(folder, **settings):
    return ArrowQuantV2(DiffusionQuantConfig(**(SETTINGS | settings))).quantize_diffusion_model(NAME, folder)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    return run(tmp_path_factory.mktemp("folded") / "model")


@pytest.fixture(scope="module")
def folding(folded):
    """How each tensor changed, from what the folder says."""
    with open_quantized(folded.quantized_path) as model, open_checkpoint(locate_model(NAME).path) as source:
        return stored_folding(model, source)


def report_of(result, name):
    return next(report for report in result.layers if report.name == name)


def relative_error(found, expected):
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_the_folded_float_model_computes_what_the_original_does(folding):
    model = samples.runnable(NAME)
    assert {QUERY, VALUE, MODULATION, BIAS} <= set(folding)
    changed = {name: tensor.whole(model.weights[name]) for name, tensor in folding.items()}
    assert max(relative_error(changed[name], model.weights[name]) for name in changed) > 0.1
    other = samples.runnable(NAME, {**model.weights, **changed})
    steps = list(model.trajectories(2, 7))
    for step in (steps[0], steps[12], steps[-1]):
        assert relative_error(other.forward(step), model.forward(step)) < 1e-5


def test_what_changed_is_said_and_what_is_kept_is_exact_in_its_new_form(folded, folding):
    model = samples.runnable(NAME)
    with open_quantized(folded.quantized_path) as stored:
        for report in folded.layers:
            assert report.folding == (folding[report.name].words if report.name in folding else "")
            assert ("Folded: its" in report.reason) == bool(report.folding)
            if report.action == "kept":
                own = np.asarray(model.weights[report.name], np.float32)
                expected = folding[report.name].whole(own) if report.folding else own
                assert np.array_equal(np.asarray(stored[report.name].dequantize("float32")), expected)
                assert report.dtype == ("float32" if report.folding else stored[report.name].dtype)
                assert report.sqnr_db == np.inf
    assert report_of(folded, BIAS).folding == "its outputs are divided"
    assert report_of(folded, VALUE).folding == "its outputs are divided and its columns are multiplied"
    assert report_of(folded, QUERY).inputs.folded
    assert "folded into the weights before them" in folded.strategy.reason


def test_a_folded_layer_stores_no_scales_and_gains_what_was_asked_for(folded):
    stored = [r for r in folded.layers if r.inputs is not None and r.inputs.alpha is not None]
    inside = [r for r in stored if r.inputs.folded]
    assert len(inside) >= 12
    assert min(r.inputs.equalization_gain_db for r in inside) >= LEAST_GAIN_DB
    assert {r.name.split(".", 2)[2] for r in stored} - {r.name.split(".", 2)[2] for r in inside} <= {"ff.net.2.weight"}
    with open_quantized(folded.quantized_path) as model:
        for report in inside:
            [(_, tile)] = model[report.name].tiles()
            assert tile.equalization is None
        assert set(model.spatial.folded) == {r.name for r in inside}


def test_it_is_fairly_validated_and_a_changed_float_model_is_not_taken_for_its_original(folded, tmp_path):
    verdict = ArrowQuantV2().validate_quality(NAME, folded.quantized_path)
    assert verdict.passed
    sentences = {t.name: t.sentence for t in verdict.tensors}
    assert sentences[BIAS] == "Folded (its outputs are divided), and bit-exact in that form."
    assert sentences["proj_out_2.bias"] == "Bit-exact."
    dequantize_model(folded.quantized_path, tmp_path / "float")
    other = ArrowQuantV2().validate_quality(tmp_path / "float", folded.quantized_path)
    assert {t.name for t in other.tensors if t.status == "different"} >= {BIAS, MODULATION, QUERY}


def test_it_goes_back_to_a_float_model_that_needs_nothing_of_ours(folded, tmp_path):
    folder = dequantize_model(folded.quantized_path, tmp_path / "float")
    with open_checkpoint(folder) as checkpoint:
        weights = {
            name: np.asarray(checkpoint.read_rows(name, 0, entry.rows), np.float32).reshape(entry.shape)
            for name, entry in checkpoint.entries.items()
        }
    plain, hooked = (
        samples.runnable(NAME, weights),
        quantized_sample(NAME, open_quantized(folded.quantized_path), "float"),
    )
    step = next(iter(plain.trajectories(1, 0)))
    assert relative_error(plain.forward(step), hooked.forward(step)) < 2e-3  # its dtype is the source's, float16
    assert evaluate_sample(NAME, folded.quantized_path, n=2, activations="float")["network_sqnr_db"] > 30


def test_without_folding_every_kept_tensor_is_bit_exact(folded, tmp_path):
    result = run(tmp_path / "model", fold_equalization=False, layer_bit_widths={"transformer_blocks.[123].*": 16})
    assert not any(report.folding for report in result.layers)
    assert report_of(result, QUERY).inputs.alpha is not None
    assert not report_of(result, QUERY).inputs.folded
    assert report_of(result, BIAS).dtype == "float16"
    assert "0 folded into the weights before them" in result.strategy.reason
    assert report_of(result, QUERY).nbytes == report_of(folded, QUERY).nbytes + 2 * 128


def test_what_the_user_keeps_stays_bit_exact(tmp_path):
    """A bias that makes an input and a layer that reads one: nothing is folded where they stand."""
    result = run(tmp_path / "model", layer_bit_widths={"transformer_blocks.[123].*": 16, BIAS: 16, VALUE: 16})
    for name in (BIAS, VALUE):
        assert (report_of(result, name).folding, report_of(result, name).dtype) == ("", "float16")
    for name in (QUERY, OUTPUT, f"{BLOCK}ff.net.0.proj.weight"):
        assert report_of(result, name).folding == ""
        assert not report_of(result, name).inputs.folded
    assert ArrowQuantV2().validate_quality(NAME, tmp_path / "model").passed


def test_a_changed_width_redoes_what_its_folding_changes_and_ends_in_the_same_bytes(tmp_path):
    kept = {"transformer_blocks.[123].*": 16}
    few = {"calibration_samples": 2, "num_time_groups": 1}
    first = run(tmp_path / "model", layer_bit_widths=kept, **few)
    assert first.reused == 0
    again = run(tmp_path / "model", layer_bit_widths=kept | {OUTPUT: 8}, **few)
    quantized = sum(r.action == "quantized" for r in again.layers)
    assert again.reused >= quantized - 3  # the layer, and the values that are divided for it
    run(tmp_path / "fresh", layer_bit_widths=kept | {OUTPUT: 8}, **few)
    assert tree(tmp_path / "model") == tree(tmp_path / "fresh")


def test_a_folded_layer_is_shown_in_the_form_of_its_source(folded, folding):
    config = DiffusionQuantConfig(**SETTINGS)
    with LayerViewer(NAME, open_quantized(folded.quantized_path).path, config) as viewer:
        view = viewer.view(VALUE)
    original = np.asarray(samples.runnable(NAME).weights[VALUE], np.float32)
    assert view.edges[0] <= original.min()
    assert sum(view.before) == original.size
    stored = np.asarray(open_quantized(folded.quantized_path).dequantize(VALUE), np.float32)
    expected = np.abs(folding[VALUE].undone(stored) - original).max()
    assert view.tile_max.max() == pytest.approx(expected, rel=1e-5)
    assert expected < np.abs(stored - original).max()  # as they are, the two are of different forms


@pytest.mark.torch
def test_scales_that_two_inputs_share_are_folded_into_both_values(tmp_path):
    """FLUX: joint attention mixes the values of image and text, and each stream has a last layer of its own."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import tiny_torch

    import arrowquant_nb as aq

    torch.manual_seed(0)
    model, call = tiny_torch.flux(num_single_layers=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("to_v.weight", "add_v_proj.weight", "norm1.linear.bias")):
                parameter.add_(torch.randn(len(parameter)).reshape(-1, *[1] * (parameter.ndim - 1)))
    model.save_pretrained(tmp_path / "float")
    aq.calibrate(model, [call(t) for t in (900, 900, 300, 300)], output=tmp_path / "inputs.parquet", rows_per_step=16)
    config = DiffusionQuantConfig(activation_bit_width=4, num_time_groups=1, min_accuracy=0, min_output_sqnr_db=-100)
    result = ArrowQuantV2(config).quantize_diffusion_model(
        tmp_path / "float", tmp_path / "model", calibration=tmp_path / "inputs.parquet"
    )
    outputs = [f"{BLOCK}attn.to_out.0.weight", f"{BLOCK}attn.to_add_out.weight"]
    assert all(report_of(result, name).inputs.folded for name in outputs)
    assert not report_of(result, f"{BLOCK}ff.net.2.weight").inputs.folded
    with open_quantized(result.quantized_path) as stored, open_checkpoint(tmp_path / "float") as source:
        folding = stored_folding(stored, source)
        assert len({tuple(stored.spatial.equalization_scales[name]) for name in outputs}) == 1
    assert {f"{BLOCK}attn.to_v.bias", f"{BLOCK}attn.add_v_proj.bias", f"{BLOCK}norm1.linear.bias"} <= set(folding)
    inputs = call(600)
    with torch.no_grad():
        before = model(**inputs).sample.numpy()
        state = model.state_dict()
        model.load_state_dict(
            state | {name: torch.from_numpy(tensor.whole(state[name].numpy())) for name, tensor in folding.items()}
        )
        assert relative_error(model(**inputs).sample.numpy(), before) < 1e-5
