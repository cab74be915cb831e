"""Gates and the fallback chain, against the table of the contract."""

import math

import pytest

from arrowquant_nb.core import gates


@pytest.mark.parametrize(("bits", "chain"), [(2, [2, 4, 8]), (4, [4, 8]), (8, [8])])
def test_the_chain_only_gets_wider(bits, chain):
    assert list(gates.fallback_chain(bits)) == chain


@pytest.mark.parametrize(
    ("bits", "requested", "asked", "needed"),
    [
        (2, 2, 0.90, 0.90),
        (4, 4, 0.98, 0.98),
        (8, 8, 0.999, 0.999),
        (4, 4, 0.10, 0.10),
        (4, 2, 0.90, 0.90),
        (4, 2, 0.50, 0.85),
        (8, 2, 0.50, 0.95),
        (8, 4, 0.999, 0.999),
        (8, 4, 0.0, 0.95),
    ],
)
def test_after_a_fallback_the_stage_floor_holds_and_before_it_the_users_own_figure(bits, requested, asked, needed):
    assert gates.required_cosine(bits, requested, asked) == needed


def test_a_figure_at_the_threshold_passes_and_nan_never_does():
    assert gates.passes(0.98, 0.98)
    assert not gates.passes(math.nextafter(0.98, 0), 0.98)
    assert not gates.passes(math.nan, 0.0)


def test_every_verdict_is_one_sentence_with_the_figures_and_what_comes_next():
    passed = gates.explain(4, 0.995, 0.98, True, 8)
    next_one = gates.explain(2, 0.91234, 0.98, False, 4)
    last = gates.explain(8, 0.9, 0.98, False, 0)
    assert all(part in passed for part in ("INT4", "0.99500", "0.98"))
    assert "0.91234" in next_one
    assert "INT4 is tried next" in next_one
    assert "no wider format" in last
    for sentence in (passed, next_one, last):
        assert sentence.endswith(".")
        assert "\n" not in sentence
