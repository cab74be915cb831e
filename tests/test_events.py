"""Events: a JSON form that reads back, and errors for what does not."""

import json
import pickle

import pytest

from arrowquant_nb import MetadataError
from arrowquant_nb import events as ev

EVENTS = [
    ev.RunStarted(n_layers=2, rows=[{"name": "a"}]),
    ev.LayerStarted(name="a", index=0, n_layers=2, bit_width=4),
    ev.LayerProgress(name="a", fraction=0.5),
    ev.AttemptFinished(
        name="a",
        bit_width=2,
        method="uls",
        passed=False,
        sentence="S.",
        gates=[{"gate": "weight_cosine", "value": 0.9}],
    ),
    ev.LayerFinished(name="a\n<b>", index=0, n_layers=2, report={"sqnr_db": "inf"}, reused=True),
    ev.RunFinished(summary={"compression_ratio": 3.5}),
    ev.RunCancelled(n_committed=1),
    ev.RunFailed(message="E: x"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
def test_an_event_survives_json_and_pickle(event):
    line = json.dumps(event.to_dict(), allow_nan=False)
    assert "\n" not in line
    assert ev.event_from_dict(json.loads(line)) == event
    assert pickle.loads(pickle.dumps(event)) == event


def test_every_kind_of_the_contract_is_there():
    assert {e.kind for e in EVENTS} == {
        "run_started",
        "layer_started",
        "layer_progress",
        "attempt_finished",
        "layer_finished",
        "run_finished",
        "run_cancelled",
        "run_failed",
    }
    assert all({"v", "seq", "t_s"} <= e.to_dict().keys() for e in EVENTS)


def test_a_line_repeats_no_field_at_its_default():
    event = ev.LayerFinished(name="a", index=0, n_layers=2)
    assert event.to_dict() == {
        "event": "layer_finished", "v": 1, "seq": -1, "t_s": 0.0, "name": "a", "index": 0, "n_layers": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"event": "unknown"},
        {"event": "run_failed"},
        {"event": "run_failed", "message": "x", "more": 1},
        {"event": None},
        {"event": []},
    ],
)
def test_what_is_no_event_is_a_metadata_error(data):
    with pytest.raises(MetadataError):
        ev.event_from_dict(data)


def test_every_line_of_a_log_reads_back_in_order(models):
    lines = (models.quantized("mixed") / "events.jsonl").read_text().splitlines()
    heard = [ev.event_from_dict(json.loads(line)) for line in lines]
    assert [e.seq for e in heard] == list(range(len(lines)))
    assert [e.to_dict() for e in heard] == [json.loads(line) for line in lines]
