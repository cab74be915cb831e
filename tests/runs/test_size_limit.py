"""Runs under a size limit, with measured sensitivity and with a floor for the network's output, on a bundled model."""

import json
import math

import numpy as np
import pytest

from arrowquant_nb import ArrowQuantV2, ConfigurationError, DiffusionQuantConfig, QuantizationError, open_quantized
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.runs.recorded import read_result
from tests.conftest import tree, write_checkpoint

SAMPLE = "docs-mlm"
FAST = {"calibration_samples": 4}


def config(**settings):
    return DiffusionQuantConfig(**(FAST | settings))


def quantize(folder, model=SAMPLE, **settings):
    return ArrowQuantV2(config(**settings)).quantize_diffusion_model(model, folder)


def payload(result):
    return sum(r.nbytes for r in result.layers) / 1e6


@pytest.fixture(scope="module")
def budget():
    return ArrowQuantV2(config()).budget(SAMPLE)


@pytest.fixture(scope="module")
def middle(budget):
    """A limit at which several widths are needed."""
    return round(budget.smallest_mb + 0.2 * (budget.largest_mb - budget.smallest_mb), 3)


@pytest.fixture(scope="module")
def limited(budget, middle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("limit") / "model"
    return folder, quantize(folder, target_model_size_mb=middle)


def test_the_limit_holds_and_the_widths_are_those_of_the_budget(budget, middle, limited):
    folder, result = limited
    assert payload(result) <= middle
    planned = {layer.name: layer for layer in budget.solve(middle).layers}
    done = {r.name: r for r in result.layers if r.name in planned}
    assert {n: (r.bit_width, r.nbytes) for n, r in done.items()} == {
        n: (p.bit_width, p.nbytes) for n, p in planned.items()
    }
    assert len({r.bit_width for r in done.values()}) > 1
    assert result.size.payload_mb == pytest.approx(payload(result))
    assert result.size.smallest_mb == pytest.approx(budget.smallest_mb)
    chosen = [r for r in done.values() if r.rule == "size allocation"]
    assert chosen
    assert all("size limit" in r.reason for r in chosen)
    assert ArrowQuantV2().validate_quality(SAMPLE, folder).passed


def test_the_prediction_is_checked_against_the_whole_network(budget, middle, limited):
    network = limited[1].network
    assert network.predicted_db == pytest.approx(budget.solve(middle).network_sqnr_db, abs=1e-6)
    assert network.additivity == pytest.approx(10 ** ((network.predicted_db - network.sqnr_db) / 10))
    assert 0.5 < network.additivity < 2
    assert network.passed
    assert network.least_db is None


def test_costs_sensitivity_and_outcome_stand_in_result_statistics_manifest_and_card(limited):
    folder, result = limited
    again = read_result(folder)
    for part in ("layers", "network", "size", "warnings"):
        assert getattr(again, part) == getattr(result, part)
    assert QuantizationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    with open_quantized(folder) as model:
        rows = {row["layer_name"]: row for row in model.stats().to_pylist()}
        assert model.facts["size"]["target_mb"] == result.size.target_mb
        assert model.facts["network"]["sqnr_db"] == result.network.sqnr_db
    measured = [r for r in result.layers if r.costs is not None and r.costs.open]
    assert len(measured) > 10
    for report in measured:
        row = rows[report.name]
        for where in ("weight", "output", "network"):
            noise = [row[f"{where}_noise_int{bits}"] for bits in (2, 4, 8)]
            assert noise[0] > noise[1] > noise[2] > 0
        assert row["sensitive"] == report.costs.sensitive
        assert row["sensitivity"] == report.costs.sentence
    card = (folder / "README.md").read_text()
    assert "## Measured on the whole" in card
    assert f"limit {result.size.target_mb:g} MB" in card
    assert "## Sensitive layers" in card
    for text in (str(result), result._repr_html_()):
        assert "network output" in text
        assert "size limit" in text


def test_another_limit_redoes_only_what_changes_and_ends_in_the_same_bytes(budget, middle, limited, tmp_path):
    import shutil

    folder = shutil.copytree(limited[0], tmp_path / "slid")
    larger = round(middle + 0.02 * (budget.largest_mb - budget.smallest_mb), 3)
    result = quantize(folder, target_model_size_mb=larger)
    forms = [
        {x.name: (x.bit_width, x.group_size, x.scale_format) for x in budget.solve(mb).layers}
        for mb in (middle, larger)
    ]
    changed = sum(a != forms[1][name] for name, a in forms[0].items())
    assert 0 < changed < len(forms[0])
    assert result.reused == len(result.layers) - changed - _kept_again(limited[1], result)
    quantize(tmp_path / "fresh", target_model_size_mb=larger)
    assert tree(folder) == tree(tmp_path / "fresh")


def _kept_again(before, after):
    """Small kept tensors share one file, which is written anew when another layer joins them."""
    kept = [{r.name for r in x.layers if r.action == "kept"} for x in (before, after)]
    return 0 if kept[0] == kept[1] else len(kept[1] - (kept[1] - kept[0]))


def test_a_limit_that_cannot_be_reached_is_refused_by_plan_and_run_before_anything_is_written(budget, tmp_path):
    small = config(target_model_size_mb=budget.smallest_mb - 0.01)
    with pytest.raises(ConfigurationError, match="smallest reachable size is"):
        ArrowQuantV2(small).plan(SAMPLE)
    with pytest.raises(ConfigurationError, match="smallest reachable size is"):
        ArrowQuantV2(small).quantize_diffusion_model(SAMPLE, tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.parquet"))


def test_a_plan_of_headers_is_provisional_and_fits(middle):
    plan = ArrowQuantV2(config(target_model_size_mb=middle)).plan(SAMPLE)
    assert plan.size_mb <= middle
    assert any("Provisional" in row.reason for row in plan.rows)
    forecast = ArrowQuantV2(config(target_model_size_mb=middle)).forecast(SAMPLE)
    assert forecast.size_mb.value <= middle
    assert forecast.target_mb == middle


def test_rules_go_before_the_limit(middle, tmp_path):
    open_name = "bert.encoder.layer.0.attention.self.query.weight"
    result = quantize(
        tmp_path / "model", target_model_size_mb=middle, layer_bit_widths={open_name: 8}, calibration_samples=4
    )
    assert payload(result) <= middle
    [report] = [r for r in result.layers if r.name == open_name]
    assert (report.bit_width, report.rule) == (8, "layer_bit_widths")


def test_the_limit_goes_before_gates_that_no_size_below_it_passes(budget, tmp_path):
    tight = budget.smallest_mb + 0.001
    settings = {"target_model_size_mb": tight, "min_output_sqnr_db": 60.0, "min_accuracy": 1.0}
    result = quantize(tmp_path / "model", **settings)
    assert payload(result) <= tight
    missed = [r for r in result.layers if r.missed_gate]
    assert tuple(r.name for r in missed) == result.size.missed_gates != ()
    assert all("the size limit leaves no more bytes" in r.missed_gate for r in missed)
    assert all(len(r.attempts) == 1 and r.passed and not r.attempts[0].passed for r in missed)
    with pytest.raises(QuantizationError, match="fail_fast"):
        quantize(tmp_path / "strict", fail_fast=True, **settings)


def test_ways_that_miss_their_gate_are_left_out_while_the_limit_allows(budget):
    def outputs(allocation):
        return sorted(x.output_sqnr_db for x in allocation.layers if not isinstance(x.output_sqnr_db, str))

    smallest = budget.solve(budget.smallest_mb + 1e-6)
    least = outputs(smallest)[0] + 1.0
    gated = ArrowQuantV2(config(min_output_sqnr_db=least)).budget(SAMPLE)
    roomy = gated.solve(budget.largest_mb / 2)
    assert not roomy.missed_gates
    assert outputs(roomy)[0] >= least
    assert gated.solve(gated.smallest_mb + 1e-6).missed_gates


def test_measured_sensitive_layers_are_kept_when_asked_for(limited, tmp_path):
    flagged = {r.name for r in limited[1].layers if r.costs is not None and r.costs.sensitive}
    result = quantize(tmp_path / "model", skip_sensitive_layers=True)
    kept = {r.name: r for r in result.layers if r.rule == "sensitive"}
    assert set(kept) == flagged
    assert all(r.action == "kept" and "Measured sensitive" in r.reason for r in kept.values())


def test_a_missed_floor_raises_the_layer_with_the_largest_gain_per_byte(tmp_path):
    plain = quantize(tmp_path / "plain")
    assert plain.network.promotions == ()
    floor = plain.network.sqnr_db + 0.3
    result = quantize(tmp_path / "model", min_network_sqnr_db=floor)
    assert result.network.passed
    assert result.network.sqnr_db >= floor
    steps = result.network.promotions
    assert 1 <= len(steps) <= 3
    assert steps[0].sqnr_db == pytest.approx(plain.network.sqnr_db)
    reports = {r.name: r for r in result.layers}
    gains = {
        name: (r.costs.at(4).network_noise - r.costs.at(8).network_noise)
        / (r.costs.at(8).nbytes - r.costs.at(4).nbytes)
        for name, r in reports.items()
        if r.costs is not None and r.costs.open
    }
    assert steps[0].layer == max(gains, key=gains.get)
    assert reports[steps[-1].layer].bit_width == steps[-1].to_bit_width
    assert reports[steps[-1].layer].rule == "network gate"
    assert payload(result) == pytest.approx(payload(plain) + sum(s.added_nbytes for s in steps) / 1e6)
    assert "more bits for" in str(result)
    assert ArrowQuantV2().validate_quality(SAMPLE, tmp_path / "model").passed


def test_a_floor_out_of_reach_ends_in_one_error_after_three_rounds(tmp_path):
    with pytest.raises(QuantizationError, match="with 3 layers raised") as caught:
        quantize(tmp_path / "model", min_network_sqnr_db=90.0)
    assert str(caught.value).count("most of all layers") == 3
    assert not (tmp_path / "model" / "manifest.json").exists()
    with pytest.raises(QuantizationError, match="with 0 layers raised"):
        quantize(tmp_path / "model", min_network_sqnr_db=90.0, fail_fast=True)


def test_a_floor_is_said_to_be_unchecked_where_the_model_cannot_be_run(models, tmp_path):
    result = quantize(tmp_path / "model", models.dit, min_network_sqnr_db=10.0)
    assert result.network is None
    assert any("min_network_sqnr_db was not checked" in warning for warning in result.warnings)


def test_more_bytes_than_were_counted_on_are_made_up_for_elsewhere(tmp_path):
    # A row between the sampled pieces is so small that its layer needs float32 scales, twice the bytes of each.
    rng = np.random.default_rng(5)
    tensors = {f"layers.{k}.weight": rng.standard_normal((2048, 256)).astype(np.float32) for k in range(3)}
    tensors["layers.1.weight"][50] *= 1e-12
    source = write_checkpoint(tmp_path / "source", tensors, {}, "model")
    settings = {"modality": "image", "scale_format": "float16", "method": "uls"}
    limit = ArrowQuantV2(config(**settings)).budget(source)
    target = math.floor(1e6 * (0.5 * limit.smallest_mb + 0.5 * limit.solve(limit.largest_mb).size_mb)) / 1e6
    result = quantize(tmp_path / "model", source, target_model_size_mb=target, **settings)
    assert payload(result) <= target
    planned = {layer.name: layer.nbytes for layer in limit.solve(target).layers}
    assert any(r.nbytes != planned[r.name] for r in result.layers)
