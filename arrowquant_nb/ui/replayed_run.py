"""The dashboard of a run that something else does or did: finished, still running, or cut off; from its log alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from arrowquant_nb import samples
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.runs.layer_viewer import LayerViewer
from arrowquant_nb.runs.locating import SAMPLE_PREFIX
from arrowquant_nb.storage.json_file import read_json_object
from arrowquant_nb.storage.output import RUN_NAME
from arrowquant_nb.ui.dashboard import Dashboard
from arrowquant_nb.ui.frame import Frame
from arrowquant_nb.ui.replay import EventLog
from arrowquant_nb.ui.run_state import RUNNING, RunState
from arrowquant_nb.ui.run_words import headline
from arrowquant_nb.ui.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["ReplayedRun", "dashboard"]

# After so long without news the log's run may have ended without a word: whether it holds its folder is looked at.
SILENCE_S: Final = 2.0


class ReplayedRun:
    """A run's dashboard that follows its log; a notebook shows it as what a cell returns.

    Attributes
    ----------
    state : what the log says.
    dashboard : the widgets.
    stopped : whether the log ends in mid-run and nobody goes on with it.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = EventLog(path)
        self._clock = clock
        self.state = RunState()
        self.stopped = False
        self._heard_s = clock()
        self._worker = Worker(self._tick)
        self.dashboard = Dashboard(self._worker, self._open_viewer, clock=clock)
        self._frame = Frame("Run", self._log.folder.name, self.dashboard.dress)
        self._frame.content.children = (self.dashboard.widget,)
        self.drain()
        self._worker.pump()

    @property
    def widget(self) -> Any:
        """What the notebook shows."""
        return self._frame.widget

    def drain(self) -> bool:
        """Read what is new and paint it; True while the run may go on. The notebook's loop calls it by itself."""
        return self._worker.drain()

    def close(self) -> None:
        """Let go of the run's files."""
        self._worker.stop()
        self.dashboard.close_up.close()

    def _tick(self) -> bool:
        events = self._log.new_events()
        if events:
            self._heard_s = self._clock()
            for event in events:
                self.state = self.state.apply(event)
            self.dashboard.show(self.state)
        elif self.state.status == RUNNING and self._clock() - self._heard_s > SILENCE_S:
            self._heard_s = self._clock()
            self.stopped = not self._log.running()
        more = self.dashboard.tick()
        if self.stopped:
            done, n = len(self.state.decided), len(self.state.quantized)
            self.dashboard.announce(
                f"The run stopped here at {done} of {n} layers. Run it again to resume: what is done is kept."
            )
        return more or (self.state.status == RUNNING and not self.stopped)

    def _open_viewer(self) -> LayerViewer:
        config = DiffusionQuantConfig.from_dict(dict(self.state.config))
        given = self.state.given or self._recorded()
        parts = {name: value for name in ("component", "variant", "calibration") if (value := given.get(name))}
        return LayerViewer(given.get("model") or self.state.model, self._log.folder, config, **parts)

    def _recorded(self) -> Mapping[str, str | None]:
        """Return what run.json says was read: logs of older versions do not say it, and only a finished run has one."""
        path = self._log.folder / RUN_NAME
        if not path.is_file():
            return {"model": f"{SAMPLE_PREFIX}{self.state.model}"} if self.state.model in samples.names() else {}
        record = read_json_object(path, max_nbytes=64 << 20)
        calibration = record.get("calibration")
        given = {"calibration": calibration.get("given")} if isinstance(calibration, dict) else {}
        given |= {name: record.get(name) for name in ("model", "component", "variant")}
        return {name: value for name, value in given.items() if isinstance(value, str)}

    def __repr__(self) -> str:
        return headline(self.state, self._log.folder.name)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)


def dashboard(path: str | Path) -> ReplayedRun:
    """Show the dashboard of a run from its `events.jsonl`: finished, still running elsewhere, or cut off.

    Parameters
    ----------
    path : the log, or the folder that holds it.

    Raises
    ------
    ModelNotFoundError
        There is no log.
    MetadataError
        The log is not one of ours; the message names the line.

    Examples
    --------
    In a notebook cell: `aq.dashboard("out/events.jsonl")`.
    """
    return ReplayedRun(path)
