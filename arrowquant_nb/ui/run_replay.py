"""A run that something else does or did, followed by its log alone: a dashboard, and what to open to go on with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from arrowquant_nb import samples
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import MetadataError
from arrowquant_nb.runs.layer_viewer import LayerViewer
from arrowquant_nb.runs.locating import SAMPLE_PREFIX
from arrowquant_nb.runs.model_choice import ModelChoice
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
_GIVEN: Final = ("model", "component", "variant", "calibration")


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
    def choice(self) -> ModelChoice | None:
        """What the run was told to open, as far as its record says; None where it does not say which model."""
        given = self._given()
        model = given.get("model")
        if not model:
            return None
        return ModelChoice(model, given.get("component"), given.get("variant"), calibration=given.get("calibration"))

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """What the record does not say: names out of model, component, variant and calibration."""
        given = self._given()
        return tuple(name for name in _GIVEN if name not in given)

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
        choice = self.choice or ModelChoice(self.state.model)
        return LayerViewer(choice.model, self.folder, self.config, **choice.parts)

    def _given(self) -> Mapping[str, str | None]:
        found = self.state.given or self._recorded()
        return {name: value for name, value in found.items() if value is None or isinstance(value, str)}

    def _recorded(self) -> Mapping[str, Any]:
        """Return what run.json says was read: logs of older versions do not say it, and only a finished run has one."""
        path = self.folder / RUN_NAME
        if not path.is_file():
            return {"model": f"{SAMPLE_PREFIX}{self.state.model}"} if self.state.model in samples.names() else {}
        record = dict(read_json_object(path, max_nbytes=64 << 20))
        calibration = record.pop("calibration", None)
        if isinstance(calibration, dict) and "given" in calibration:
            record["calibration"] = calibration["given"]
        return {name: record[name] for name in _GIVEN if name in record}
