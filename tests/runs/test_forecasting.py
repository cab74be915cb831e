"""Forecasts and size budgets before a run: against what the run then measures, and what is said where it cannot be."""

import copy
import itertools
import json
import math
import pickle

import numpy as np
import pytest

from arrowquant_nb import ArrowQuantV2, ConfigurationError, DiffusionQuantConfig, Forecast, SizeAllocation
from arrowquant_nb.calibration.cache import cache_folder
from arrowquant_nb.core.task import LayerTask
from arrowquant_nb.quantizers.trials import LayerInputs
from arrowquant_nb.runs import wide_layers
from arrowquant_nb.runs.measuring import SampledLayer, measure_layers, pieces_of

SAMPLE = "docs-mlm"
FAST = {"calibration_samples": 4}


def config(**settings):
    return DiffusionQuantConfig(**(FAST | settings))


@pytest.fixture(scope="module")
def forecast():
    return ArrowQuantV2(config()).forecast(SAMPLE)


@pytest.fixture(scope="module")
def budget(forecast):
    return ArrowQuantV2(config()).budget(SAMPLE)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return ArrowQuantV2(config()).quantize_diffusion_model(SAMPLE, tmp_path_factory.mktemp("run") / "model")


def test_the_run_falls_into_the_forecasts_intervals(forecast, result):
    from arrowquant_nb import evaluate_sample

    done = [r for r in result.layers if r.action == "quantized"]
    payload = sum(r.nbytes for r in result.layers) / 1e6
    assert forecast.size_mb.low <= payload <= forecast.size_mb.high
    assert forecast.weight_sqnr_db.low <= result.sqnr_db <= forecast.weight_sqnr_db.high
    measured = evaluate_sample(SAMPLE, result.quantized_path, n=8, seed=3)["network_sqnr_db"]
    assert forecast.network_sqnr_db.low <= measured <= forecast.network_sqnr_db.high
    layers = {layer.name: layer for layer in forecast.layers}
    assert set(layers) == {r.name for r in done}
    for report in done:
        layer = layers[report.name]
        assert (layer.bit_width, layer.group_size, layer.scale_format) == (
            report.bit_width, report.group_size, report.scale_format,
        )  # fmt: skip
        assert layer.nbytes == report.nbytes
        assert layer.weight_sqnr_db == pytest.approx(report.sqnr_db, abs=0.7)
        assert layer.output_sqnr_db == pytest.approx(report.output_sqnr, abs=1.5)


def test_a_forecast_is_plain_data_with_text_and_html(forecast):
    assert Forecast.from_dict(json.loads(json.dumps(forecast.to_dict()))) == forecast
    assert pickle.loads(pickle.dumps(forecast)) == copy.deepcopy(forecast) == forecast
    text = str(forecast)
    assert f"{forecast.network_sqnr_db.value:.1f} ({forecast.network_sqnr_db.low:.1f} to" in text
    assert all(layer.name[:30] in text for layer in forecast.layers)
    assert "<table>" in forecast._repr_html_()
    assert SAMPLE in repr(forecast)


def test_what_was_measured_is_kept_and_a_damaged_entry_is_said(forecast, budget):
    again = ArrowQuantV2(config()).forecast(SAMPLE)
    assert again.reused
    assert again.layers == forecast.layers
    import os

    folder = cache_folder(os.environ).with_name("costs")
    saved = {path: path.read_bytes() for path in folder.glob("*.json")}
    try:
        for path, content in saved.items():
            path.write_bytes(content.replace(b'"weight_noise": 0', b'"weight_noise": 1', 1))
        damaged = ArrowQuantV2(config()).forecast(SAMPLE)
    finally:
        for path, content in saved.items():
            path.write_bytes(content)
    assert not damaged.reused
    assert damaged.layers == forecast.layers
    assert any("hash does not hold" in warning for warning in damaged.warnings)


def test_more_bytes_never_cost_decibels_and_no_limit_is_exceeded(budget):
    span = budget.largest_mb - budget.smallest_mb
    before = -math.inf
    for k in range(21):
        target = budget.smallest_mb + span * k / 20 + 1e-9
        found = budget.solve(target)
        assert found.size_mb <= target
        assert found.network_sqnr_db >= before - 1e-9
        before = found.network_sqnr_db
    widths = {layer.bit_width for layer in found.layers if budget.costs and layer.bit_width == 16}
    assert widths == {16}
    small = budget.solve(budget.smallest_mb + 1e-6)
    assert {layer.bit_width for layer in small.layers} >= {2}
    assert SizeAllocation.from_dict(json.loads(json.dumps(small.to_dict()))) == small
    assert "limit" in str(small)
    assert f"{budget.smallest_mb:.3f}" in str(budget)
    assert "<table>" in small._repr_html_() + budget._repr_html_()


def test_a_mixture_beats_one_width_at_equal_size(budget, forecast):
    found = budget.solve(forecast.size_mb.value)
    assert found.network_sqnr_db > forecast.network_sqnr_db.value
    assert len({layer.bit_width for layer in found.layers}) > 1


@pytest.mark.parametrize("target", [0, -1.0, math.nan, math.inf, True, "1"])
def test_a_limit_that_is_no_size_is_refused(budget, target):
    with pytest.raises(ConfigurationError, match="target_model_size_mb"):
        budget.solve(target)


def test_an_unreachable_limit_states_the_smallest_size_which_is_reachable(budget):
    with pytest.raises(ConfigurationError, match="smallest reachable size is") as caught:
        budget.solve(budget.smallest_mb - 1e-6)
    stated = float(str(caught.value).partition("size is ")[2].split(" MB")[0])
    assert stated >= budget.smallest_mb
    assert budget.solve(stated).size_mb <= stated


def test_without_calibration_or_a_runnable_model_nothing_is_invented(models):
    quantizer = ArrowQuantV2()
    found = quantizer.forecast(models.dit)
    assert found.network_sqnr_db is None
    assert "not_measured" in str(found)
    assert {layer.output_sqnr_db for layer in found.layers} == {"not_measured"}
    assert all("the weights" in layer.sentence for layer in found.layers)
    run = sum(r.nbytes for r in quantizer.plan(models.dit).rows) / 1e6
    assert found.size_mb.value == pytest.approx(run)
    allocation = quantizer.budget(models.dit).solve(found.size_mb.value)
    assert allocation.network_sqnr_db == "not_measured"


def test_rows_of_a_large_layer_are_sampled_evenly():
    class Task:
        rows, columns, low_rank = 5000, 4096, 0

    pieces = pieces_of(Task)
    assert len(pieces) == 8
    assert pieces[0][0] == 0
    assert pieces[-1][0] + pieces[-1][1] == 5000
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(pieces))
    Task.low_rank = 4
    assert pieces_of(Task) == [(0, 5000)]


def measured_alone(columns, planned_only=False, enough=lambda _task, _way: False, bits=2):
    """The costs of one layer whose inputs are strongly correlated."""
    rng = np.random.default_rng(0)
    weight = rng.standard_t(5, (24, columns)).astype(np.float32)
    x = rng.standard_normal((2, 2 * columns, columns // 8)) @ rng.standard_normal((columns // 8, columns))
    x = (x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32)
    inputs = LayerInputs((x[0].T @ x[0] / len(x[0])).astype(np.float64), x[1:, :64], (slice(0, 1),))
    task = LayerTask(
        0, "wide", weight.shape, "float32", 24, columns, 0, bits, 32, ["uls"], True, 0.0, "linear", "", "bit_width",
        compensated=True,
    )  # fmt: skip
    layer = SampledLayer(task, False, (0,), weight, 0, planned_only)
    (found,) = measure_layers([layer], lambda _: inputs, None, 1, lambda _: None, lambda: False, enough)
    return found


def test_what_gptq_gains_in_a_wide_layer_is_told_from_blocks_of_its_columns(monkeypatch):
    whole = measured_alone(768)
    monkeypatch.setattr(wide_layers, "COMPENSATED_COLUMNS", 256)
    told = measured_alone(768)
    for exact, way in zip(whole.ways, told.ways, strict=True):
        assert (way.compensated, way.method) == (True, exact.method)
        assert 10 * math.log10(way.output_noise / exact.output_noise) == pytest.approx(0, abs=1.5)
        assert way.held_out_sqnr_db == pytest.approx(exact.held_out_sqnr_db, abs=1.5)
        assert 10 * math.log10(way.weight_noise / exact.weight_noise) == pytest.approx(0, abs=1.0)
        assert way.spread > exact.spread == 0.0
        # A column is compensated by those after it, so a block alone, where the interval ends, is the worst there is.
        assert way.output_noise * (1 + 2 * way.spread) > exact.output_noise


def test_a_layer_of_more_than_a_thousand_columns_is_measured_by_gptq_itself():
    (way,) = measured_alone(1100, planned_only=True, enough=lambda _task, _way: True).ways
    assert (way.compensated, way.method, way.spread) == (True, "gptq-uls", 0.0)


def test_where_only_the_plan_is_asked_wider_ways_are_measured_only_as_far_as_they_are_needed():
    asked = []

    def enough(task, way):
        asked.append((task.name, way.bit_width))
        return way.bit_width == 4

    assert [way.bit_width for way in measured_alone(64, planned_only=True, enough=enough).ways] == [2, 4]
    assert asked == [("wide", 2), ("wide", 4)]
    assert [way.bit_width for way in measured_alone(64).ways] == [2, 4, 8]
