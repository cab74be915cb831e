"""What grouping timesteps buys: the range of one layer's inputs at every step, and the range of each group of steps."""

import itertools
from collections.abc import Sequence
from typing import Any

from arrowquant_nb.runs.layer_view import TimeGroup, TimeRanges
from arrowquant_nb.ui.charts.layout import Axes, axes
from arrowquant_nb.ui.palette import Palette

__all__ = ["time_ranges_traces"]


def time_ranges_traces(ranges: TimeRanges | None, words: str, colours: Palette) -> list[dict[str, Any]]:
    """Return the seen range, the groups' ranges, the one range for all, and words.

    Parameters
    ----------
    ranges : what was seen; None where nothing was measured over time.
    words : the sentence that stands in the panel: whose inputs these are, or why there are none.
    """
    if ranges is None:
        return [
            *[{"type": "scatter", "name": n, "x": [], "y": [], **axes(Axes.TIME)} for n in ("seen", "groups", "one")],
            _text([(500.0, 0.5, words, "middle center"), (0.0, 0.0, "", ""), (999.0, 1.0, "", "")], colours),
        ]
    times = list(reversed(ranges.times))
    low, high = list(reversed(ranges.low)), list(reversed(ranges.high))
    bottom, top = min(low), max(high)
    steps_x: list[float | None] = []
    steps_y: list[float | None] = []
    for group, (first, last) in zip(ranges.groups, _spans(ranges.groups), strict=True):
        steps_x += [first, last, last, first, first, None]
        steps_y += [group.low, group.low, group.high, group.high, group.low, None]
    group_words = [f"timesteps {g.first_time} to {g.last_time}: {g.low:.3g} to {g.high:.3g}" for g in ranges.groups]
    seen = {
        "type": "scatter", "name": "seen", "x": [*times, *reversed(times)], "y": [*high, *reversed(low)],
        "mode": "lines", "fill": "toself", "line": {"color": colours.widths[4], "width": 1},
        "fillcolor": "rgba(86,180,233,0.30)", "hoverinfo": "skip", **axes(Axes.TIME),
    }  # fmt: skip
    groups = {
        "type": "scatter", "name": "groups", "x": steps_x, "y": steps_y, "mode": "lines",
        "line": {"color": colours.widths[2], "width": 1.5}, "hoverinfo": "text",
        "hovertext": [text for text in group_words for _ in range(6)], **axes(Axes.TIME),
    }  # fmt: skip
    one = {
        "type": "scatter", "name": "one range for all", "x": [times[0], times[-1], None, times[0], times[-1]],
        "y": [top, top, None, bottom, bottom], "mode": "lines", "hoverinfo": "skip",
        "line": {"color": colours.quiet, "width": 1.5, "dash": "dash"}, **axes(Axes.TIME),
    }  # fmt: skip
    room = 0.25 * (top - bottom)
    labels = [
        (times[0], top, "one range for all", "top right"),
        (times[len(times) // 2], top + room, words, "middle center"),
        (times[len(times) // 2], bottom - room, "boxes: range of each time group", "middle center"),
    ]
    return [seen, groups, one, _text(labels, colours)]


def _spans(groups: Sequence[TimeGroup]) -> list[tuple[float, float]]:
    """Return from where to where each group is drawn: neighbours meet half-way between their timesteps."""
    spans = [(float(g.first_time), float(g.last_time)) for g in groups]
    order = sorted(range(len(spans)), key=lambda i: spans[i])
    for left, right in itertools.pairwise(order):
        middle = (spans[left][1] + spans[right][0]) / 2
        spans[left], spans[right] = (spans[left][0], middle), (middle, spans[right][1])
    return spans


def _text(labels: Sequence[tuple[float, float, str, str]], colours: Palette) -> dict[str, Any]:
    return {
        "type": "scatter", "name": "words", "x": [x for x, _, _, _ in labels], "y": [y for _, y, _, _ in labels],
        "mode": "text", "text": [text for _, _, text, _ in labels],
        "textposition": [side or "middle center" for _, _, _, side in labels],
        "textfont": {"color": colours.ink, "size": 11}, "hoverinfo": "skip", "cliponaxis": False, **axes(Axes.TIME),
    }  # fmt: skip
