"""The selected layer from near: read beside the kernel, one layer at a time; of several requests the last one counts.

Knows no widgets: whoever asks is told when a view has come, or why none will.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.runs.layer_view import LayerView, TimeRanges
    from arrowquant_nb.runs.layer_viewer import LayerViewer
    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["CloseUp"]

NO_RANGES: Final = (
    "No calibration: nothing was measured over time.<br>Samples are run by themselves. For another model<br>"
    "put a calibration file beside it (aq.calibrate)."
)
NOT_LOOKED: Final = "Click a layer to see its inputs over time."
NOT_AT_HAND: Final = "Not at hand: the model of this run cannot be opened."


class CloseUp:
    """Reads layers.

    Parameters
    ----------
    worker : where they are read.
    opener : opens the run's files; None where they are not at hand.
    on_view : called with the name of a layer that was read, and the error where it could not be.

    Attributes
    ----------
    view : the layer that was read last, until none is wanted; None while there is none.
    ranges, ranges_of : how its inputs range over time, None where that was not measured, and its name; both stay.
    """

    def __init__(
        self,
        worker: Worker,
        opener: Callable[[], LayerViewer] | None,
        on_view: Callable[[str, BaseException | None], None],
    ) -> None:
        self._worker, self._opener, self._on_view = worker, opener, on_view
        self._viewer: LayerViewer | None = None
        self._reading = False
        self._stale = False
        self._wanted = ""
        self.view: LayerView | None = None
        self.ranges: TimeRanges | None = None
        self.ranges_of = ""

    def want(self, name: str) -> None:
        """Have a layer read; "" wants none."""
        self._wanted = name
        if not name:
            self.view = None
        if name and not self._reading and self._opener is not None:
            self._read(name)

    def of(self, name: str) -> LayerView | None:
        """Return the view of a layer; None while it is not read."""
        return self.view if self.view is not None and self.view.name == name else None

    def forget(self) -> None:
        """Let go of everything: another run begins."""
        self._wanted = self.ranges_of = ""
        self.view = self.ranges = None
        self.close()

    def close(self) -> None:
        """Let go of the run's files; a layer that is being read is read to its end first."""
        if self._reading:
            self._stale = True
        elif self._viewer is not None:
            self._viewer.close()
            self._viewer = None

    def _read(self, name: str) -> None:
        self._reading = True
        opener, viewer = self._opener, self._viewer

        def work(_: Any) -> tuple[LayerViewer, LayerView]:
            opened = viewer if viewer is not None or opener is None else opener()
            if opened is None:
                raise AssertionError(name)
            try:
                return opened, opened.view(name)
            except BaseException:
                if opened is not viewer:
                    opened.close()
                raise

        self._worker.start("view", work, lambda outcome: self._read_to_end(name, outcome))

    def _read_to_end(self, name: str, outcome: Outcome[tuple[LayerViewer, LayerView]]) -> None:
        self._reading = False
        if outcome.result is not None:
            self._viewer, view = outcome.result
            if self._wanted == name and not self._stale:
                self.view, self.ranges, self.ranges_of = view, view.ranges, name
        again = self._wanted if self._stale or self._wanted != name else ""
        if self._stale:
            self._stale = False
            self.close()
        if again and self._opener is not None:
            self._read(again)
        self._on_view(name, outcome.error if self._wanted == name else None)
