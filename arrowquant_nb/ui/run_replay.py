"""A run that something else does or did, followed by its log alone: a dashboard, and what to open to go on with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from arrowquant_nb import samples
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import MetadataError
from arrowquant_nb.runs.layer_viewer import LayerViewer
from arrowquant_nb.runs.locating import SAMPLE_PREFIX
from arrowquant_nb.storage.json_file import read_json_object
from arrowquant_nb.storage.output import RUN_NAME
from arrowquant_nb.ui.dashboard import Dashboard
from arrowquant_nb.ui.replay import EventLog
from arrowquant_nb.ui.run_state import RUNNING, RunState
from arrowquant_nb.ui.run_words import stopped
from arrowquant_nb.ui.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["RunReplay"]

# After so long without news the log's run may have ended without a word: whether it holds its folder is looked at.
SILENCE_S: Final = 2.0
_PARTS: Final = ("component", "variant", "calibration")


class RunReplay:
    """A run's dashboard that follows its log.

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

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._log.folder

    @property
    def config(self) -> DiffusionQuantConfig:
        """The run's settings.

        Raises
        ------
        MetadataError
            The log does not say them.
        """
        if not self.state.config:
            raise MetadataError(f"{self._log.path} does not say the settings of its run: choose them anew")
        return DiffusionQuantConfig.from_dict(dict(self.state.config))

    @property
    def model(self) -> str:
        """What the run was told to open, "" where it took more than a model, such as a component or a calibration."""
        given = self._given()
        return "" if any(given.get(name) for name in _PARTS) else given.get("model") or self.state.model

    def drain(self) -> bool:
        """Read what is new and paint it; True while the run may go on. The notebook's loop calls it by itself."""
        return self._worker.drain()

    def follow(self) -> None:
        """Read what there is now, and go on reading on the notebook's loop while the run may go on."""
        self.drain()
        self._worker.pump()

    def close(self) -> None:
        """Let go of the run's files."""
        self._worker.stop()
        self.dashboard.close_up.close()

    def _tick(self) -> bool:
        events = self._log.new_events()
        if events:
            self._heard_s, self.stopped = self._clock(), False
            for event in events:
                self.state = self.state.apply(event)
            self.dashboard.show(self.state)
        elif self.state.status == RUNNING and self._clock() - self._heard_s > SILENCE_S:
            self._heard_s = self._clock()
            self.stopped = not self._log.running()
        more = self.dashboard.tick()
        if self.stopped:
            self.dashboard.announce(stopped(self.state))
        return more or (self.state.status == RUNNING and not self.stopped)

    def _open_viewer(self) -> LayerViewer:
        given = self._given()
        parts = {name: value for name in _PARTS if (value := given.get(name))}
        return LayerViewer(given.get("model") or self.state.model, self.folder, self.config, **parts)

    def _given(self) -> Mapping[str, str | None]:
        return self.state.given or self._recorded()

    def _recorded(self) -> Mapping[str, str | None]:
        """Return what run.json says was read: logs of older versions do not say it, and only a finished run has one."""
        path = self.folder / RUN_NAME
        if not path.is_file():
            return {"model": f"{SAMPLE_PREFIX}{self.state.model}"} if self.state.model in samples.names() else {}
        record = read_json_object(path, max_nbytes=64 << 20)
        calibration = record.get("calibration")
        given = {"calibration": calibration.get("given")} if isinstance(calibration, dict) else {}
        given |= {name: record.get(name) for name in ("model", "component", "variant")}
        return {name: value for name, value in given.items() if isinstance(value, str)}
