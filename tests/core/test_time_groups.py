"""Timestep grouping: cuts worked out by hand, exhaustive search, and the invariants of optimal partition."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_nb import ConfigurationError, ShapeMismatchError
from arrowquant_nb.core.time_groups import (
    choose_groups,
    cost_table,
    optimal_groups,
    range_costs,
    uniform_groups,
)

RANGES = st.lists(st.tuples(st.floats(-4, 1), st.floats(0, 8)), min_size=1, max_size=9)


def total(cost, groups):
    return sum(cost[i][j - i - 1] for i, j in groups)


def costs_of(ranges, bits=8):
    return range_costs([a for a, _ in ranges], [b for _, b in ranges], bits)


@st.composite
def tables(draw):
    n = draw(st.integers(1, 7))
    return [draw(st.lists(st.floats(0, 10), min_size=n - i, max_size=n - i)) for i in range(n)]


@given(st.integers(1, 60), st.integers(1, 70))
def test_uniform_groups_put_step_i_into_group_floor_i_g_over_t(n_steps, n_groups):
    groups = uniform_groups(n_steps, n_groups)
    n = min(n_steps, n_groups)
    assert len(groups) == n
    assert [g for g, (i, j) in enumerate(groups) for _ in range(i, j)] == [i * n // n_steps for i in range(n_steps)]


def test_range_costs_are_the_noise_of_one_grid_over_the_union_with_zero():
    cost = range_costs([-1.0, 0.5], [2.0, 14.0], 4)
    assert cost[0] == [pytest.approx((3 / 15) ** 2 / 12), pytest.approx(2 * (15 / 15) ** 2 / 12)]
    assert cost[1] == [pytest.approx((14 / 15) ** 2 / 12)]


def test_the_cut_falls_where_the_range_jumps():
    cost = costs_of([(-1, 1)] * 3 + [(-8, 8)] * 5)
    assert optimal_groups(cost, 2)[0] == [(0, 3), (3, 8)]
    assert uniform_groups(8, 2) == [(0, 4), (4, 8)]
    chosen = choose_groups(cost, 10)
    assert chosen.groups == [(0, 3), (3, 8)]
    assert chosen.gain_db == pytest.approx(10 * math.log10(8 * 64 / (3 + 5 * 64)))


def test_ties_go_to_the_earliest_cut():
    assert optimal_groups(cost_table(4, lambda i, j: float(j - i)), 2)[0] == [(0, 1), (1, 4)]


@given(tables(), st.integers(1, 8))
def test_no_partition_into_as_many_groups_costs_less(cost, n_groups):
    n = len(cost)
    groups, found = optimal_groups(cost, n_groups)
    cuts = itertools.combinations(range(1, n), min(n_groups, n) - 1)
    least = min(total(cost, itertools.pairwise([0, *inner, n])) for inner in cuts)
    assert found == pytest.approx(least)
    assert total(cost, groups) == pytest.approx(found)
    assert groups[0][0] == 0
    assert groups[-1][1] == n
    assert all(a[1] == b[0] for a, b in itertools.pairwise(groups))


@given(tables(), st.integers(1, 8))
def test_optimal_never_costs_more_than_uniform(cost, n_groups):
    assert optimal_groups(cost, n_groups)[1] <= total(cost, uniform_groups(len(cost), n_groups)) + 1e-9


@given(RANGES, st.sampled_from([4, 8]))
def test_more_groups_never_cost_more_one_is_static_and_one_per_step_is_per_step(ranges, bits):
    cost, n = costs_of(ranges, bits), len(ranges)
    by_number = [optimal_groups(cost, g)[1] for g in range(1, n + 1)]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(by_number))
    assert by_number[0] == cost[0][-1]
    assert by_number[-1] == pytest.approx(sum(row[0] for row in cost))
    assert optimal_groups(cost, n)[0] == [(i, i + 1) for i in range(n)]


@given(RANGES, st.integers(1, 9))
def test_the_chosen_number_is_the_smallest_within_2_percent_of_one_group_per_step(ranges, most):
    cost, n = costs_of(ranges), len(ranges)
    chosen = choose_groups(cost, most)
    per_step = math.fsum(row[0] for row in cost)
    n_groups = len(chosen.groups)
    assert n_groups <= min(most, n)
    assert (chosen.groups, chosen.cost) == optimal_groups(cost, n_groups)
    assert chosen.static_cost == cost[0][-1]
    assert chosen.cost <= 1.02 * per_step or n_groups == min(most, n)
    assert all(optimal_groups(cost, g)[1] > 1.02 * per_step for g in range(1, n_groups))


def test_never_more_than_16_groups_however_many_are_allowed():
    cost = costs_of([(0.0, 1.0), (0.0, 9.0)] * 20)
    assert len(choose_groups(cost, 100).groups) == 16


def test_inputs_that_are_all_zero_need_one_group_and_gain_nothing():
    chosen = choose_groups(costs_of([(0.0, 0.0)] * 5), 4)
    assert chosen.groups == [(0, 5)]
    assert chosen.gain_db == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_cost_that_is_no_cost_is_refused(bad):
    with pytest.raises(ConfigurationError, match="row 1"):
        optimal_groups([[1.0, 2.0], [bad]], 1)


def test_tables_and_counts_that_do_not_fit_are_refused():
    with pytest.raises(ShapeMismatchError, match="row 0 of the cost table has 1 entries; with 2 steps it needs 2"):
        choose_groups([[1.0], [1.0]], 2)
    with pytest.raises(ShapeMismatchError, match="2 lower and 1 upper"):
        range_costs([0.0, 0.0], [1.0], 8)
    for refused in (lambda: uniform_groups(0, 1), lambda: uniform_groups(3, 0), lambda: choose_groups([], 1)):
        with pytest.raises(ConfigurationError, match="at least 1"):
            refused()


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=7), st.integers(1, 7))
def test_of_equally_good_groupings_the_one_with_the_earliest_cuts_is_taken(steps, n_groups):
    n = len(steps)
    cost = cost_table(n, lambda i, j: float(max(steps[i:j]) * (j - i)))
    groups, found = optimal_groups(cost, n_groups)
    size = min(n_groups, n)
    ties = [
        inner
        for inner in itertools.combinations(range(1, n), size - 1)
        if total(cost, itertools.pairwise([0, *inner, n])) == found
    ]
    cuts = tuple(i for i, _ in groups[1:])
    assert cuts in ties
    assert cuts[::-1] == min(inner[::-1] for inner in ties)  # the last cut first, as the recursion finds them
