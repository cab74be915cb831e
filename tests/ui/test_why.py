"""The sentence that says why a layer came out as it did: the first rule that fires, and silence where none does."""

import numpy as np
import pytest
from made_up_run import attempt, gates, layer_events, name_of, started

from arrowquant_nb.events import AttemptFinished
from arrowquant_nb.runs.layer_view import LayerView, TimeGroup, TimeRanges
from arrowquant_nb.ui.run_state import RunState
from arrowquant_nb.ui.why import why


def layer(*attempts, bits=4):
    state = RunState().apply(started(1))
    for event in layer_events(0, 1, bits=bits, attempts=attempts or None):
        state = state.apply(event)
    return state.layers[name_of(0)]


def view(outlier_groups=0, group_size=64, columns=128, decibels=(30.0, 30.5, 31.0)):
    groups = tuple(TimeGroup(100 * i, 100 * i + 99, -1.0, 1.0, db) for i, db in enumerate(decibels))
    few = np.zeros(2, np.float32)
    return LayerView(
        name=name_of(0), shape=(64, columns), bit_width=4, group_size=group_size, edges=np.arange(3.0),
        before=np.zeros(2, np.int64), after=np.zeros(2, np.int64), tile_mean=few, tile_max=few, row_edges=(0, 64),
        column_edges=(0, columns), scales=few, n_groups=128, outlier_share=0.003, outlier_groups=outlier_groups,
        n_rows_seen=64, ranges=TimeRanges(name_of(0), (0,), (0.0,), (1.0,), groups),
    )  # fmt: skip


def test_nothing_is_said_where_no_rule_fires():
    assert why(layer(), view()) == ""
    assert why(layer(), view(outlier_groups=1)) == "", "one group of 128 explains nothing"


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (
            view(outlier_groups=2),
            "0.3 % of the weights lie beyond 6 x their row's spread; they set the scale of 2 of 128",
        ),
        (view(decibels=(30.0, 30.5, 26.9)), "Timesteps 200 to 299 come out 3.1 dB below the median time group."),
        (view(columns=200, group_size=128), "Rows of 200 weights do not divide into groups of 128"),
        (view(outlier_groups=2, columns=200, group_size=128), "0.3 % of the weights"),  # the first rule, no other
    ],
)
def test_each_rule_has_its_sentence(seen, words):
    assert why(layer(), seen).startswith(words)


def test_a_near_miss_names_what_may_pass():
    missed = layer(attempt(4, 19.7, passed=False), attempt(8, 39.0), bits=8)
    event = AttemptFinished(
        name=name_of(0), bit_width=8, method="uls", passed=True, sentence="", gates=gates(mean=20.0)
    )  # fmt: skip
    state = RunState(layers={name_of(0): missed}).apply(event)
    assert why(state.layers[name_of(0)], view()) == (
        "INT4 missed its gate by 0.30 dB: close; INT4 with a group size of 32 may pass."
    )
