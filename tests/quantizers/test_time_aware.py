"""Timestep groups and their grids: worked by hand, against brute force, and what must hold for any drift."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arrowquant_nb as aq
from arrowquant_nb import ConfigurationError, ShapeMismatchError, TimeAwareQuantizer
from arrowquant_nb.quantizers.activation_grid import grid_of_range, round_to_grid
from arrowquant_nb.quantizers.activation_ranges import StepRanges, union_range
from arrowquant_nb.quantizers.time_aware import WIDENING, grid_error, grouping_cost

few = settings(max_examples=40, deadline=None)


def steps_of(low, high, times=None):
    low, high = np.float32(low)[:, None], np.float32(high)[:, None]
    return StepRanges.of_capture("a.weight", times if times is not None else np.arange(len(low)) * 10, low, high)


@st.composite
def drifts(draw, most=7):
    """Ranges that wander with time, and rows that fill them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, most))
    spread = np.exp(np.cumsum(rng.normal(0, draw(st.sampled_from([0.0, 0.05, 0.8])), n)))
    rows = rng.standard_normal((n, 20, 6)) * spread[:, None, None] + draw(st.sampled_from([0.0, 2.0]))
    times = rng.choice(1000, n, replace=False)
    return StepRanges.of_rows("a.weight", times, rows.astype(np.float32))


def every_partition(n, n_groups):
    for cuts in itertools.combinations(range(1, n), n_groups - 1):
        edges = [0, *cuts, n]
        yield list(itertools.pairwise(edges))


def test_the_public_names_are_these():
    for name in ("TimeAwareQuantizer", "TimeGroupParams", "TimeAwareQuantMetadata"):
        assert name in aq.__all__
        assert getattr(aq, name).__name__ == name


def test_two_regimes_are_told_apart():
    """Three narrow steps and two wide ones: one cut, between the timesteps 20 and 30, half-way."""
    steps = steps_of([0, 0, 0, -8, -8], [1.5, 1.5, 1.5, 7, 7])
    quantizer = TimeAwareQuantizer(4, 2)
    grouping = quantizer.group_timesteps(steps)
    assert grouping.groups == [(0, 3), (3, 5)]
    table = quantizer.layer_table(steps, 1)
    assert [g.time_range for g in table.groups] == [(0, 25), (25, 51)]
    first, second = table.groups
    assert first.scale == pytest.approx(0.1 * (1 + WIDENING / 2 / 3), rel=1e-6)
    assert first.zero_point == 0
    assert second.scale == pytest.approx(1 + 2 * WIDENING / 2 / 2, rel=1e-6)
    assert second.zero_point == 8


def test_sampling_order_does_not_matter():
    low, high = np.float32([[-1, 0], [-3, -1], [-9, 0]]), np.float32([[1, 2], [3, 0], [9, 4]])
    up = StepRanges.of_capture("a", [10, 500, 990], low, high)
    down = StepRanges.of_capture("a", [990, 500, 10], low[::-1], high[::-1])
    quantizer = TimeAwareQuantizer(8, 3)
    assert quantizer.layer_table(up, 2) == quantizer.layer_table(down, 2)


def test_the_noise_cost_is_worked_by_hand():
    """Ranges of 15 and 30 at 4 bits: steps 1 and 2, noise 1/12 and 4/12; together 2 * 4/12."""
    cost = grouping_cost(steps_of([0, 0], [15, 30]), "minmax", 4)
    np.testing.assert_allclose(cost[0], [1 / 12, 8 / 12])
    np.testing.assert_allclose(cost[1], [4 / 12])


@given(drifts(), st.sampled_from([4, 8]))
@few
def test_the_histogram_cost_is_the_error_of_the_inputs(steps, bits):
    """Against rounding the bins' centres: a bin adds its own width squared over 12."""
    cost = grouping_cost(steps, "minmax", bits)
    grid = grid_of_range(float(steps.low.min()), float(steps.high.max()), bits)
    centres = steps.bin_centres.astype(np.float64)
    width = (steps.histogram_range[1] - steps.histogram_range[0]) / len(centres)
    error = (round_to_grid(centres.astype(np.float32), *grid, bits) - centres) ** 2 + width**2 / 12
    assert cost[0][-1] == pytest.approx(float(steps.histogram.sum(0) @ error), rel=1e-2)


@given(drifts(), st.integers(1, 5))
@few
def test_the_grouping_is_the_best_of_its_size_and_never_worse_than_uniform(steps, most):
    quantizer = TimeAwareQuantizer(4, most)
    cost = grouping_cost(steps, "minmax", 4)

    def total(groups):
        return sum(cost[i][j - i - 1] for i, j in groups)

    grouping = quantizer.group_timesteps(steps)
    n = len(grouping.groups)
    assert 1 <= n <= min(most, len(steps))
    assert total(grouping.groups) == pytest.approx(min(map(total, every_partition(len(steps), n))), rel=1e-9, abs=1e-12)
    uniform = TimeAwareQuantizer(4, n, grouping="uniform").group_timesteps(steps)
    assert len(uniform.groups) == n
    assert grouping.cost <= uniform.cost * (1 + 1e-9)
    assert grouping.static_cost == cost[0][-1]


@given(drifts())
@few
def test_as_few_groups_as_cost_two_percent_more_than_a_grid_per_step(steps):
    grouping = TimeAwareQuantizer(4, 16).group_timesteps(StepRanges("a", steps.times, steps.low, steps.high))
    cost = grouping_cost(StepRanges("a", steps.times, steps.low, steps.high), "minmax", 4)
    per_step = sum(row[0] for row in cost)
    assert grouping.cost <= 1.02 * per_step * (1 + 1e-9)
    n = len(grouping.groups)
    if n > 1:
        fewer = min(sum(cost[i][j - i - 1] for i, j in p) for p in every_partition(len(steps), n - 1))
        assert fewer > 1.02 * per_step


@given(drifts(), st.integers(1, 6))
@few
def test_one_group_is_static_and_groups_cover_every_step(steps, most):
    table = TimeAwareQuantizer(8, most).layer_table(steps, 6)
    first, last = int(steps.times[0]), int(steps.times[-1])
    before, after = (int(steps.times[1]) - first, last - int(steps.times[-2])) if len(steps) > 1 else (1000, 1000)
    assert table.groups[0].time_range[0] == max(0, first - before)
    assert table.groups[-1].time_range[1] == min(1000, last + after + 1)
    assert all(table.covers(int(t)) for t in steps.times)
    static = TimeAwareQuantizer(8, 1).layer_table(steps, 6)
    assert len(static.groups) == 1
    assert not static.skipped
    if table.skipped:
        assert table.groups == static.groups
        assert table.gain_db < 0.2


@given(drifts(), st.integers(1, 6), st.sampled_from([4, 8]))
@few
def test_no_calibrated_input_is_clipped_by_minmax_grids(steps, most, bits):
    quantizer = TimeAwareQuantizer(bits, most)
    table, groups = quantizer.grouped_table(steps, 6)
    for (i, j), group in zip(groups, table.groups, strict=True):
        low, high = steps.low[i:j].min(), steps.high[i:j].max()
        ends = (np.array([0, 2**bits - 1]) - group.zero_point) * group.scale
        half = group.scale / 2 * (1 + 1e-3)  # the zero point is rounded
        assert ends[0] - half <= min(low, 0)
        assert max(high, 0) <= ends[1] + half


def test_a_table_that_gains_little_is_skipped_and_says_what_it_would_gain():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 400, 4)).astype(np.float32)
    table = TimeAwareQuantizer(8, 4).layer_table(StepRanges.of_rows("a", np.arange(6) * 100, np.clip(rows, -2, 2)), 4)
    assert table.skipped
    assert len(table.groups) == 1
    assert 0 <= table.gain_db < 0.2


@pytest.mark.parametrize("rule", ["percentile", "mse"])
def test_other_rules_clip_an_outlier_and_cost_less(rule):
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((2, 3000, 8)).astype(np.float32)
    rows[0, 0, 0] = 60.0
    steps = StepRanges.of_rows("a", [5, 900], rows)
    low, high = union_range(steps, 0, 2, rule, 4)
    assert high < 60
    assert steps.low.min() <= low < 0
    costs = [grouping_cost(steps, r, 4)[0][-1] for r in (rule, "minmax")]
    assert costs[0] < costs[1]


@given(drifts())
@few
def test_mse_never_costs_more_than_minmax(steps):
    assert grouping_cost(steps, "mse", 4)[0][-1] <= grouping_cost(steps, "minmax", 4)[0][-1] * (1 + 1e-9)


def test_the_error_of_given_grids_is_that_of_the_cost_table():
    rows = np.random.default_rng(3).standard_normal((4, 50, 3)).astype(np.float32)
    steps = StepRanges.of_rows("a", [1, 2, 3, 4], rows)
    quantizer = TimeAwareQuantizer(4, 1, range_rule="mse")
    params = quantizer.compute_params_per_group(steps, [(0, 4)], 3)
    assert grid_error(steps, [(0, 4)], params, 4) == pytest.approx(grouping_cost(steps, "mse", 4)[0][-1])


def test_groups_that_do_not_cut_the_steps_are_refused():
    steps = steps_of([0, 0, 0], [1, 1, 1])
    quantizer = TimeAwareQuantizer()
    for groups in ([], [(0, 2)], [(0, 1), (2, 3)], [(1, 3)], [(0, 2), (1, 3)]):
        with pytest.raises(ShapeMismatchError, match=r"a\.weight"):
            quantizer.compute_params_per_group(steps, groups, 1)


def test_steps_beyond_the_model_are_refused():
    with pytest.raises(ConfigurationError, match="1200"):
        TimeAwareQuantizer(n_timesteps=1000).layer_table(steps_of([0, 0], [1, 2], np.array([5, 1200])), 1)


@pytest.mark.parametrize("settings", [
    {"bit_width": 2}, {"num_time_groups": 0}, {"n_timesteps": 0}, {"range_rule": "max"}, {"grouping": "kmeans"},
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigurationError, match=str(next(iter(settings.values())))):
        TimeAwareQuantizer(**settings)


LOW, HIGH = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)


@pytest.mark.parametrize(("times", "low", "high", "counts", "error", "message"), [
    ([1, 2, 3], LOW, HIGH, None, ShapeMismatchError, "3 timesteps"),
    ([1, 2], LOW, HIGH[:, :2], None, ShapeMismatchError, "channel_max"),
    ([1.5, 2.5], LOW, HIGH, None, ShapeMismatchError, "integers"),
    ([[1, 2]], LOW, HIGH, None, ShapeMismatchError, "times"),
    ([1, 1], LOW, HIGH, None, ConfigurationError, "distinct"),
    ([-1, 1], LOW, HIGH, None, ConfigurationError, "negative"),
    ([1, 2], LOW * np.nan, HIGH, None, ConfigurationError, "NaN"),
    ([1, 2], HIGH, LOW, None, ConfigurationError, "minimum above"),
    ([1, 2], LOW, HIGH, np.ones((3, 8), np.int64), ShapeMismatchError, "histogram"),
    ([1, 2], LOW, HIGH, np.zeros((2, 8), np.int64), ConfigurationError, "empty"),
])  # fmt: skip
def test_a_bad_capture_is_refused_by_layer(times, low, high, counts, error, message):
    with pytest.raises(error, match=message) as raised:
        StepRanges.of_capture("b.weight", times, low, high, counts, (0.0, 1.0))
    assert "b.weight" in str(raised.value)


@pytest.mark.parametrize(("rows", "error"), [
    (np.zeros((2, 3), np.float32), ShapeMismatchError),
    (np.zeros((2, 0, 3), np.float32), ShapeMismatchError),
    (np.zeros((3, 1, 3), np.float32), ShapeMismatchError),
    (np.full((2, 1, 3), np.inf, np.float32), ConfigurationError),
])  # fmt: skip
def test_bad_rows_are_refused_by_layer(rows, error):
    with pytest.raises(error, match=r"b\.weight"):
        StepRanges.of_rows("b.weight", [1, 2], rows)


def test_a_rule_without_its_histograms_is_refused():
    with pytest.raises(ConfigurationError, match="histograms"):
        union_range(steps_of([0], [1]), 0, 1, "mse", 4)
    with pytest.raises(ConfigurationError, match="histograms"):
        grid_error(steps_of([0], [1]), [(0, 1)], (), 4)
