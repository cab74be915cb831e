"""Gates and the fallback chain, against the table of the contract."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_nb.core import gates
from arrowquant_nb.core.gates import OutputFigures, judge

DECIBELS = st.floats(-20, 80)
COSINE = st.floats(-1, 1)


def output(sqnr_db, worst_sqnr_db, cosine=0.999, gain=1.0):
    return OutputFigures(sqnr_db, worst_sqnr_db, cosine, gain)


def verdicts(judgement):
    return {g.gate: g.verdict for g in judgement.gates}


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


@pytest.mark.parametrize(
    ("bits", "compensated", "mean", "worst"),
    [(2, False, 9, 6), (2, True, 12, 9), (4, False, 20, 16), (4, True, 20, 16), (8, False, 35, 30)],
)
def test_the_output_must_reach_the_tables_figures_and_a_hair_less_fails(bits, compensated, mean, worst):
    def passed(figures):
        return judge(bits, bits, compensated, 1.0, figures, 0.9, None, 0).passed

    assert passed(output(mean, worst))
    assert not passed(output(math.nextafter(mean, 0), worst))
    assert not passed(output(mean, math.nextafter(worst, 0)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_users_output_sqnr_replaces_the_table_at_every_width_and_the_worst_group_may_lie_3_db_below(bits):
    assert gates.required_output_sqnr_db(bits, True, 17.5) == (17.5, 14.5)
    assert judge(bits, 2, False, 1.0, output(17.5, 14.5), 0.9, 17.5, 0).passed
    assert not judge(bits, 2, False, 1.0, output(17.5, 14.4), 0.9, 17.5, 0).passed


def test_a_figure_at_the_threshold_passes_and_nan_never_does():
    assert gates.passes(0.98, 0.98)
    assert not gates.passes(math.nextafter(0.98, 0), 0.98)
    assert not gates.passes(math.nan, 0.0)
    assert not judge(4, 4, False, 1.0, output(math.nan, 20), 0.9, None, 0).passed
    assert not judge(4, 4, False, math.nan, output(30, 30), 0.0, None, 0).passed


def test_without_calibration_the_weights_decide_and_the_output_reads_not_measured_not_passed():
    judgement = judge(4, 4, True, 0.99, None, 0.98, None, 8)
    assert judgement.passed
    assert judgement.decided_by == "weight_cosine"
    assert verdicts(judgement) == {"weight_cosine": "passed", "output_sqnr_db": "not_measured"}
    records = [g.to_dict() for g in judgement.gates]
    assert records[0] == {
        "gate": "weight_cosine",
        "value": 0.99,
        "threshold": 0.98,
        "verdict": "passed",
    }
    assert records[1]["value"] == "not_measured"
    assert not judge(4, 4, True, 0.9, None, 0.98, None, 8).passed


def test_gptqs_weight_cosine_is_waived_only_when_the_output_passes():
    good = judge(2, 2, True, 0.92, output(18, 15), 0.95, None, 4)
    assert good.passed
    assert verdicts(good)["weight_cosine"] == "waived"
    bad = judge(2, 2, True, 0.92, output(18, 8), 0.95, None, 4)
    assert not bad.passed
    assert verdicts(bad)["weight_cosine"] == "failed"
    assert not judge(2, 2, False, 0.92, output(18, 15), 0.95, None, 4).passed


@given(COSINE, DECIBELS, DECIBELS, st.floats(-1, 1), st.floats(0, 2), st.booleans())
def test_output_cosine_and_gain_are_reported_and_never_gate(cosine, mean, worst, output_cosine, gain, compensated):
    plain = judge(4, 2, compensated, cosine, output(mean, worst), 0.9, None, 8)
    other = judge(4, 2, compensated, cosine, output(mean, worst, output_cosine, gain), 0.9, None, 8)
    assert plain.passed == other.passed
    assert verdicts(other)["output_cosine"] == verdicts(other)["output_gain"] == "reported"


@given(
    COSINE, st.none() | st.tuples(DECIBELS, DECIBELS), st.booleans(), st.sampled_from([2, 4, 8]),
    st.floats(0, 1), st.floats(0, 1), st.none() | DECIBELS,
)  # fmt: skip
def test_loosening_a_threshold_never_makes_an_attempt_fail(cosine, figures, compensated, bits, asked, looser, least):
    measured = None if figures is None else output(*figures)
    strict = judge(bits, 2, compensated, cosine, measured, max(asked, looser), least, 0)
    loose = judge(bits, 2, compensated, cosine, measured, min(asked, looser), None if least is None else least - 1, 0)
    assert loose.passed >= strict.passed


@given(COSINE, DECIBELS, DECIBELS, st.sampled_from([2, 4, 8]), st.booleans())
def test_an_attempt_passes_exactly_when_no_gate_failed_and_the_deciding_gate_says_the_same(
    c, mean, worst, b, compensated
):
    judgement = judge(b, 2, compensated, c, output(mean, worst), 0.9, None, 8)
    assert judgement.passed == ("failed" not in verdicts(judgement).values())
    assert (verdicts(judgement)[judgement.decided_by] == "passed") == judgement.passed


def sentence(bits, cosine, measured=None, next_bits=0, compensated=False):
    return judge(bits, bits, compensated, cosine, measured, 0.98, None, next_bits).sentence


def test_every_verdict_is_one_sentence_with_the_deciding_figures_and_what_comes_next():
    assert sentence(4, 0.995) == "INT4 keeps a weight cosine of 0.99500, at or above the 0.98 asked for."
    assert sentence(2, 0.91234, None, 4) == (
        "INT2 keeps a weight cosine of 0.91234, below the 0.98 asked for, so INT4 is tried next."
    )
    assert sentence(8, 0.9).endswith("below the 0.98 asked for, and no wider format is left.")
    assert sentence(4, 0.995, output(22.34, 18)) == (
        "INT4 gives the layer's output 22.34 dB, at or above the 20 dB asked for."
    )
    assert sentence(4, 0.995, output(22.34, 15.5), 8) == (
        "INT4 gives the layer's output 15.50 dB in its worst timestep group, below the 16 dB asked for, so INT8 is "
        "tried next."
    )
    assert sentence(2, 0.93, output(18, 15), 4, compensated=True).endswith(
        "; that outweighs a weight cosine of 0.93000."
    )


def test_a_figure_that_rounds_up_to_its_threshold_is_written_out_so_that_it_does_not_read_as_passed():
    assert "0.979999999" in sentence(4, 0.979999999)
    assert "19.999999 dB" in sentence(4, 1.0, output(19.999999, 19))
