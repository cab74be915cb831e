"""What a run hands back: JSON round trips, pickles, copies, tables, and names that try to break out of them."""

import copy
import dataclasses
import json
import math
import pickle
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import (
    ArrowQuantV2,
    DiffusionQuantConfig,
    LayerReport,
    Plan,
    QuantizationResult,
    ReproductionReport,
    ValidationReport,
    reproduce,
)
from arrowquant_nb.comparisons import TensorComparison
from arrowquant_nb.layer_reports import AttemptReport
from arrowquant_nb.results import PlanRow, Strategy

HOSTILE = [
    "<script>alert(1)</script>",
    "a\nb",
    "|`*_#",
    "\0",
    "'\"&",
    "x" * 5_000,
    "\u202eabc",
    "inf",
    "nan",
    "-inf",
    "",
]


@pytest.fixture(scope="module")
def result(models, tmp_path_factory):
    config = DiffusionQuantConfig(bit_width=2, min_accuracy=0.98)
    return ArrowQuantV2(config).quantize_diffusion_model(models.dit, tmp_path_factory.mktemp("result") / "model")


@pytest.fixture(scope="module")
def plan(models):
    return ArrowQuantV2().plan(models.dit)


@pytest.fixture(scope="module")
def validation(models):
    return ArrowQuantV2().validate_quality(models.dit, models.quantized("dit"))


@pytest.fixture(scope="module")
def reproduction(models):
    return reproduce(models.quantized("mixed"))


@pytest.fixture(
    params=["result", "plan", "validation", "reproduction", "strategy", "layer", "row", "attempt", "comparison"]
)
def value(request, result, plan, validation, reproduction):
    return {
        "result": result,
        "plan": plan,
        "validation": validation,
        "reproduction": reproduction,
        "strategy": plan.strategy,
        "layer": next(r for r in result.layers if r.fell_back),
        "row": plan.rows[0],
        "attempt": next(a for r in result.layers for a in r.attempts),
        "comparison": validation.tensors[0],
    }[request.param]


def test_a_value_survives_json_pickle_and_copy(value):
    text = json.dumps(value.to_dict(), allow_nan=False)
    assert type(value).from_dict(json.loads(text)) == value
    assert pickle.loads(pickle.dumps(value)) == value
    assert copy.deepcopy(value) == value
    assert copy.copy(value) == value


def test_values_are_frozen(value):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


def layer(name="a", **changes):
    values = {
        "name": name,
        "shape": (2, 3),
        "dtype": "float16",
        "action": "kept",
        "role": "linear",
        "reason": "R.",
        "rule": "bit_width",
        "requested_bit_width": 16,
        "bit_width": 16,
        "method": "",
        "grid": "",
        "group_size": 0,
        "n_weights": 6,
        "source_nbytes": 12,
        "nbytes": 12,
        "sqnr_db": math.inf,
        "cosine": 1.0,
        "mse": 0.0,
        "gain": 1.0,
        "w_absmax": 1.0,
    }
    return LayerReport(**(values | changes))


@settings(max_examples=50)
@given(st.sampled_from(HOSTILE) | st.text(), st.floats(), st.lists(st.integers(0, 2**40), max_size=5))
def test_any_name_and_any_float_survive_json(name, number, shape):
    attempt = AttemptReport(4, "uls", "minimum", number, number, 0.0, 0.5, True, "not_measured", name)
    value = layer(name, shape=tuple(shape), sqnr_db=number, attempts=(attempt,))
    again = LayerReport.from_dict(json.loads(json.dumps(value.to_dict(), allow_nan=False)))
    assert repr(again) == repr(value)


def test_infinity_is_written_as_a_word_that_json_allows():
    assert layer().to_dict()["sqnr_db"] == "inf"


class Collector(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def tags(page):
    collector = Collector()
    collector.feed(page)
    return set(collector.tags)


TABLE_TAGS = {
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "div",
    "span",
    "p",
    "b",
    "strong",
    "code",
    "br",
    "small",
}


def hostile_values(result, plan, validation):
    reports = tuple(layer(n, reason=n, role=n, method=n) for n in HOSTILE)
    attempt = AttemptReport(4, "uls", "minimum", 0.5, 3.0, 0.1, 0.9, False, "not_measured", HOSTILE[0])
    quantized = tuple(
        layer(n, action="quantized", bit_width=4, requested_bit_width=2, method=n, attempts=(attempt,)) for n in HOSTILE
    )
    strategy = Strategy(HOSTILE[0], HOSTILE[0], True, True, HOSTILE[0], HOSTILE[0])
    rows = tuple(PlanRow(n, (1,), n, "kept", n, n, n, 16, 1, 2, 2, method=n) for n in HOSTILE)
    compared = tuple(TensorComparison(n, "missing", 0, 0.0, -math.inf, math.inf, n) for n in HOSTILE)
    yield dataclasses.replace(
        result, model=HOSTILE[0], modality_reason=HOSTILE[0], strategy=strategy, layers=reports + quantized
    )
    yield dataclasses.replace(plan, model=HOSTILE[0], modality_reason=HOSTILE[0], strategy=strategy, rows=rows)
    yield dataclasses.replace(validation, original=HOSTILE[0], quantized=HOSTILE[0], tensors=compared)


def test_hostile_names_are_escaped_in_html_and_text(result, plan, validation):
    for value in hostile_values(result, plan, validation):
        page = value._repr_html_()
        assert tags(page) <= TABLE_TAGS
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert "\0" not in page + str(value)
        assert "\u202e" not in page + str(value)
        assert len(max(str(value).splitlines(), key=len)) < 2_000


def test_tables_hold_the_measured_figures(result, validation, plan):
    for text in (str(result), result._repr_html_()):
        assert f"{result.compression_ratio:.2f}" in text
        assert "INT2" in text
        assert "not_measured" in text
        assert "container" in text
    worst = min((r for r in result.layers if r.action == "quantized"), key=lambda r: r.sqnr_db)
    assert worst.name in str(result)
    assert "passed" in str(validation)
    assert all(r.name in plan._repr_html_() for r in plan.rows)
    kept = [r for r in result.layers if r.action == "kept"]
    assert all(r.name in result._repr_html_() and r.reason in result._repr_html_() for r in kept)


def test_a_result_as_an_arrow_table_has_a_row_per_tensor(result):
    table = result.to_arrow()
    assert table.num_rows == len(result.layers) == 32
    assert table["name"].to_pylist() == [r.name for r in result.layers]
    assert table["bits_per_weight"].to_pylist() == [r.bits_per_weight for r in result.layers]
    assert table["shape"].to_pylist() == [list(r.shape) for r in result.layers]


def test_headline_figures_follow_from_the_layers(result):
    done = [r for r in result.layers if r.action == "quantized"]
    n = sum(r.n_weights for r in done)
    assert result.payload_nbytes == sum(r.nbytes for r in result.layers)
    assert result.compression_ratio == sum(r.source_nbytes for r in result.layers) / result.payload_nbytes
    assert result.compression_ratio_quantized == sum(r.source_nbytes for r in done) / sum(r.nbytes for r in done)
    assert result.cosine_similarity == pytest.approx(sum(r.cosine * r.n_weights for r in done) / n)
    assert result.fallback_rate == sum(r.fell_back for r in done) / len(done) > 0
    assert result.bits_per_weight == 8 * sum(r.nbytes for r in done) / n
    error = sum(r.mse * r.n_weights for r in done)
    signal = sum(r.mse * r.n_weights * 10 ** (r.sqnr_db / 10) for r in done)
    assert result.sqnr_db == pytest.approx(10 * math.log10(signal / error))


def test_the_size_is_what_lies_on_the_disk(models, tmp_path):
    value = ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    files = [p for p in (tmp_path / "model").rglob("*") if p.is_file() and p.name != ".lock"]
    on_disk = sum(p.stat().st_size for p in files)
    assert value.model_size_mb * 1e6 == pytest.approx(on_disk, abs=4_000)  # the last event is written afterwards
    assert value.container_nbytes + value.payload_nbytes == pytest.approx(value.model_size_mb * 1e6)


def test_a_run_with_nothing_to_quantize_has_finite_figures(models, tmp_path):
    value = ArrowQuantV2(DiffusionQuantConfig(layer_bit_widths={"*": 16})).quantize_diffusion_model(
        models.dit, tmp_path / "model"
    )
    assert (
        value.compression_ratio,
        value.compression_ratio_quantized,
        value.cosine_similarity,
        value.fallback_rate,
    ) == (1.0, 1.0, 1.0, 0.0)
    assert value.sqnr_db == math.inf
    assert QuantizationResult.from_dict(json.loads(json.dumps(value.to_dict(), allow_nan=False))) == value
    assert "exact" in str(value)


def test_a_failed_validation_and_reproduction_say_so():
    failed = ValidationReport(
        "a", "b", 0.5, 3.0, (TensorComparison("w", "missing", 0, 0.0, -math.inf, math.inf, "Not in b."),)
    )
    assert not failed.passed
    assert "FAILED" in str(failed)
    assert "FAILED" in failed._repr_html_()
    report = ReproductionReport("f", ("a",), ("b",), ("c",), ("d",), ("numpy was 1, is 2",))
    assert not report.passed
    assert all(
        word in str(report)
        for word in ("DIFFERENT  b", "MISSING    c", "EXTRA      d", "NOT reproduced", "numpy was 1")
    )
    assert ReproductionReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_what_is_planned_and_what_is_stored_are_told_apart_by_the_same_figure(models, tmp_path):
    planned = ArrowQuantV2().plan(models.dit)
    stored = ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    assert f"planned size  {planned.source_size_mb:.3f} MB -> {planned.size_mb:.3f} MB of tensors" in str(planned)
    tensors = f"{stored.payload_nbytes / 1e6:.3f} MB of tensors"
    assert re.search(rf"stored size +{stored.source_size_mb:.3f} MB -> {tensors}, as written", str(stored))
    assert f"{tensors} (were" in stored._repr_html_()
    assert repr(planned).endswith(f"{planned.size_mb:.3f} MB planned)")
    assert f"{tensors}, {stored.model_size_mb:.3f} MB on disk" in repr(stored)


def test_a_plan_adds_up(plan):
    assert isinstance(plan, Plan)
    assert plan.size_mb == sum(r.nbytes for r in plan.rows) / 1e6
    assert plan.source_size_mb == sum(r.source_nbytes for r in plan.rows) / 1e6
    assert plan.bits_per_weight == 8 * sum(r.nbytes for r in plan.rows) / sum(r.n_weights for r in plan.rows)


def test_a_record_leaves_defaults_out_and_reads_back_equal(result):
    attempt = result.layers[-1].attempts or next(r.attempts for r in result.layers if r.attempts)
    compared = dataclasses.replace(attempt[0], compared={"uls g32": 0.5, "r2q g64": 1.5}, output_sqnr=math.inf)
    report = layer(attempts=(*attempt, compared))
    record = report.to_record()
    assert "low_rank" not in record
    assert "rotation_seed" not in record
    assert record["attempts"][-1]["compared"] == {"uls g32": 0.5, "r2q g64": 1.5}
    assert record["attempts"][-1]["output_sqnr"] == "inf"
    assert type(report).from_dict(json.loads(json.dumps(record))) == report
