"""Sensitive layers: outliers in log scale, worked out by hand."""

import math

from hypothesis import given
from hypothesis import strategies as st

from arrowquant_nb.core.sensitivity import explain, flags, threshold

COSTS = st.lists(st.floats(1e-9, 1e3), min_size=3, max_size=30)


def test_median_plus_three_deviations_of_the_logarithms():
    # Logarithms 0, 1, 2, 3, 9: median 2, deviations 2, 1, 0, 1, 7 with median 1.
    costs = [math.exp(v) for v in (0, 1, 2, 3, 9)]
    assert math.isclose(threshold(costs), math.exp(5))
    assert flags(costs) == [False, False, False, False, True]


def test_layers_that_are_alike_are_not_sensitive_however_close_the_others_lie():
    assert flags([1.0, 1.0, 1.0, 1.0, 1.9]) == [False] * 5
    assert flags([1.0, 1.0, 1.0, 1.0, 2.1]) == [False, False, False, False, True]


def test_few_layers_and_exact_ones_are_never_flagged():
    assert flags([1e-9, 1.0]) == [False, False]
    assert flags([0.0, 0.0, 0.0, 5.0]) == [False] * 4
    assert threshold([]) == math.inf


@given(COSTS, st.floats(1e-3, 1e3))
def test_the_unit_of_the_costs_does_not_matter(costs, unit):
    limit = threshold(costs)
    scaled = [cost * unit for cost in costs]
    assert math.isclose(threshold(scaled), limit * unit, rel_tol=1e-9)


@given(COSTS)
def test_at_most_half_of_the_layers_are_sensitive(costs):
    assert sum(flags(costs)) <= len(costs) // 2


def test_the_sentence_says_what_was_measured_and_why():
    costs = [0.001, 0.001, 0.001, 0.1]
    assert explain(0.1, costs, "the network's output", 2) == (
        "INT2 in this layer alone leaves the network's output 10.0 dB, 1e+02 times the noise of the median layer: "
        "sensitive (above median + 3 MAD)."
    )
    assert "30.0 dB, 1 times" in explain(0.001, costs, "the weights", 4)
    assert explain(0.0, costs, "the weights", 4) == "INT4 in this layer alone leaves the weights exact."
    assert explain(0.01, [], "the weights", 8) == "INT8 in this layer alone leaves the weights 20.0 dB."
