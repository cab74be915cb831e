"""The panel of input ranges over timesteps: what is drawn of groups, and the words where there is nothing to draw."""

from arrowquant_nb.runs.layer_view import TimeGroup, TimeRanges
from arrowquant_nb.ui.charts.time_ranges import time_ranges_traces
from arrowquant_nb.ui.palette import LIGHT

# Four timesteps, the most noisy first, as calibration has them; the groups likewise.
RANGES = TimeRanges(
    "x", (900, 700, 300, 100), (-4.0, -2.0, -2.0, -1.0), (4.0, 2.0, 2.0, 1.0),
    (TimeGroup(900, 900, -4.0, 4.0), TimeGroup(300, 700, -2.0, 2.0), TimeGroup(100, 100, -1.0, 1.0)),
)  # fmt: skip


def drawn(words="inputs of x"):
    return {trace["name"]: trace for trace in time_ranges_traces(RANGES, words, LIGHT)}


def test_boxes_of_groups_meet_half_way_and_keep_their_ranges():
    groups = drawn()["groups"]
    boxes = [
        (min(groups["x"][i : i + 5]), max(groups["x"][i : i + 5]), min(groups["y"][i : i + 5])) for i in (0, 6, 12)
    ]
    assert boxes == [(800, 900, -4.0), (200, 800, -2.0), (100, 200, -1.0)]


def test_what_lines_boxes_and_filling_are_is_said_in_the_panel():
    texts = drawn()["words"]["text"]
    assert texts == ["one range for all", "inputs of x", "boxes: range of each time group"]


def test_without_ranges_there_are_words_and_as_many_traces():
    traces = time_ranges_traces(None, "not measured", LIGHT)
    assert len(traces) == len(drawn())
    assert "not measured" in traces[-1]["text"]
