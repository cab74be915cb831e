"""A run's state follows from its events alone."""

import json
import math

import pytest
from made_up_run import N, attempt, decibels_of, layer_events, name_of, plan_row, report, run_events, started

from arrowquant_nb.events import (
    CalibrationProgress,
    LayerFinished,
    LayerProgress,
    LayersOrdered,
    LayerStarted,
    RunCancelled,
    RunFailed,
    event_from_dict,
)
from arrowquant_nb.ui.run_state import CANCELLED, FAILED, FINISHED, RUNNING, WAITING, RunState
from arrowquant_nb.ui.run_words import facts, going_on


def test_before_anything_is_known_there_is_nothing():
    state = RunState()
    assert state.status == WAITING
    assert state.median_db() is None
    assert state.worst() is None
    assert state.share_done == 0.0
    assert state.seconds_left is None


def test_apply_changes_nothing_and_returns_a_new_state():
    before = RunState.of([started(3)])
    after = before.apply(LayerFinished(name=name_of(0), index=0, n_layers=3, report=report(0, 25.0).to_record()))
    assert before.layers[name_of(0)].report is None
    assert after.layers[name_of(0)].report is not None
    assert before.order == ()
    assert after.order == (name_of(0),)


def test_figures_of_three_layers_worked_out_by_hand():
    events = [started(3)]
    for i, db in enumerate((30.0, 22.0, 26.0)):
        events += layer_events(i, 3, db, t_s=1.0)
    state = RunState.of(events)
    assert state.median_db() == 26.0
    assert state.worst().name == name_of(1)
    assert state.written_nbytes == 3 * N // 2
    assert state.planned_nbytes == 3 * N // 2 + 128
    layer = state.layers[name_of(1)]
    assert (layer.sqnr_db, layer.worst_db, layer.gate_db, layer.worst_gate_db) == (22.0, 20.0, 20.0, 16.0)
    assert layer.margin_db == 2.0
    assert layer.words == "passed, 2.0 dB to spare"


def test_without_calibration_the_weights_count_and_there_is_no_gate():
    bare = report(0, 30.0).to_record()
    for key in ("output_sqnr", "worst_output_sqnr"):
        bare["attempts"][0][key] = "not_measured"
    state = RunState.of([started(1), LayerFinished(name=name_of(0), index=0, n_layers=1, report=bare)])
    layer = state.layers[name_of(0)]
    assert layer.sqnr_db == 20.0
    assert not layer.measured_output
    assert layer.gate_db is None
    assert layer.margin_db is None


def test_a_layer_that_was_taken_over_has_the_gates_of_the_table_or_of_the_settings():
    done = LayerFinished(name=name_of(0), index=0, n_layers=1, report=report(0, 25.0).to_record(), reused=True)
    assert RunState.of([started(1), done]).layers[name_of(0)].gate_db == 20.0
    state = RunState.of([started(1, min_output_sqnr_db=31.0), done])
    assert (state.layers[name_of(0)].gate_db, state.layers[name_of(0)].worst_gate_db) == (31.0, 28.0)


def test_progress_counts_the_part_of_the_layer_that_is_worked_on():
    state = RunState.of([started(2), *layer_events(0, 2)])
    assert state.share_done == pytest.approx(0.5)
    state = state.apply(LayerStarted(name=name_of(1), index=1, n_layers=2, bit_width=4))
    state = state.apply(LayerProgress(name=name_of(1), fraction=0.5))
    assert state.current == name_of(1)
    assert state.share_done == pytest.approx(0.75)


def test_time_left_goes_by_source_bytes_since_the_layers_began():
    events = [started(4), CalibrationProgress(source="8 trajectories", fraction=1.0, t_s=5.0)]
    state = RunState.of([*events, *layer_events(0, 4, t_s=6.0)])
    assert state.layers_began_s == 5.0
    assert state.mb_per_s == pytest.approx(2 * N / 1e6)
    # Three layers and the kept tensor of 128 bytes are left.
    assert state.seconds_left == pytest.approx((3 * 2 * N + 128) / (2 * N))


def test_every_way_a_run_ends():
    events = run_events(2)
    assert RunState.of(events).status == FINISHED
    assert RunState.of(events).share_done == 1.0
    begun = RunState.of(events[:4])
    assert begun.status == RUNNING
    assert begun.apply(RunCancelled(n_committed=1)).status == CANCELLED
    failed = begun.apply(RunFailed(message="QuantizationError: no."))
    assert (failed.status, failed.message) == (FAILED, "QuantizationError: no.")


def test_a_layer_below_its_gate_and_one_that_fell_back_say_so():
    tries = (attempt(2, 7.0, passed=False), attempt(4, 24.0))
    fell = LayerFinished(
        name=name_of(0), index=0, n_layers=2, report=report(0, 24.0, attempts=tries, requested=2).to_record()
    )
    missed = report(1, 15.0, attempts=(attempt(8, 15.0, passed=False),)).to_record()
    state = RunState.of([started(2), fell, LayerFinished(name=name_of(1), index=1, n_layers=2, report=missed)])
    assert (state.n_fell_back, state.n_below_gate) == (1, 1)
    assert state.layers[name_of(0)].words.startswith("fell back, passed")
    assert "below its gate" in state.layers[name_of(1)].words


def test_events_of_layers_that_are_not_in_the_plan_are_ignored():
    state = RunState.of([started(1)])
    stray = LayerFinished(name="somewhere.else", index=9, n_layers=1, report=report(0, 25.0).to_record())
    assert state.apply(stray).layers == state.layers


def test_a_new_start_begins_anew():
    state = RunState.of([*run_events(3), started(2)])
    assert (state.status, len(state.quantized), state.order) == (RUNNING, 2, ())


def test_a_replayed_log_gives_the_same_state():
    events = run_events(5)
    replayed = RunState.of(event_from_dict(json.loads(json.dumps(e.to_dict()))) for e in events)
    live = RunState.of(events)
    assert [(x.name, x.sqnr_db, x.words) for x in replayed.decided] == [
        (x.name, x.sqnr_db, x.words) for x in live.decided
    ]
    assert replayed.median_db() == live.median_db() == sorted(decibels_of(i) for i in range(5))[2]


def test_an_exact_layer_has_no_finite_median_but_does_no_harm():
    events = [started(1), *layer_events(0, 1, math.inf)]
    assert RunState.of(events).median_db() == math.inf


def test_layers_that_are_ordered_otherwise_keep_their_report_until_they_are_done_again():
    state = RunState.of(run_events(3, finished=False))
    name = name_of(1)
    row = plan_row(1, bits=8, rule="layer_bit_widths")
    after = state.apply(LayersOrdered(rows=[row.to_record()], config={"layer_bit_widths": {name: 8}}))
    assert after.layers[name].plan == row
    assert after.layers[name].report is state.layers[name].report
    assert after.layers[name].overridden
    assert after.config["layer_bit_widths"] == {name: 8}
    for event in layer_events(1, 3, db=50.0, bits=8):
        after = after.apply(event)
    assert after.layers[name].report.bit_width == 8
    assert after.order == state.order, "it counts once"


def test_figures_of_a_run_carry_their_labels_and_what_they_are_counted_against():
    assert facts(RunState().apply(started(1200)))[0] == ("Quality", "no layer yet")
    found = dict(facts(RunState.of(run_events(3))))
    assert set(found) == {"SQNR of layer outputs", "Stored size", "Fell back", "Below gate", "Kept in float"}
    assert found["Below gate"] == "0 of 3"
    assert found["Stored size"].endswith("MB planned")
    assert dict(facts(RunState().apply(started(1200))))["Fell back"] == "0 of 1,200"


def test_a_run_is_resumed_only_where_a_layer_is_there_to_go_on_from():
    assert going_on(RunState.of(run_events(3)[:1])) == "Run"
    assert going_on(RunState.of(run_events(3))) == "Resume"
