"""How a run speaks and listens: numbered events to a log and to listeners, progress, and the flag to stop.

Knows nothing of widgets; a listener may be anything that takes an event.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.events import CalibrationProgress, Event, LayerFinished, LayerProgress, RunFinished, RunStarted
from arrowquant_nb.storage.durable import as_output_error
from arrowquant_nb.storage.output import EVENTS_NAME

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from io import TextIOWrapper


class RunCancelledError(QuantizationError):
    """The run was asked to stop; committed layers are safe and the output is resumable."""


class RunControl:
    """Events of one run, written to `events.jsonl` and handed to listeners in order.

    Parameters
    ----------
    n_threads, fail_fast : settings the loop reads here.
    listeners : called with every event on the run's thread; an exception stops the run and is re-raised.
    stop : set from any thread to cancel.
    """

    def __init__(
        self, n_threads: int, fail_fast: bool, listeners: Sequence[Callable[[Event], None]], stop: threading.Event
    ) -> None:
        self.n_threads = n_threads
        self.fail_fast = fail_fast
        self._listeners = tuple(listeners)
        self._stop = stop
        self._began = time.perf_counter()
        self._seq = 0
        self.finished = False
        self._log: TextIOWrapper | None = None
        self._log_path = Path(EVENTS_NAME)

    def open_log(self, folder: Path) -> None:
        """Begin `events.jsonl` afresh; it tells of the latest run only."""
        self._log_path = folder / EVENTS_NAME
        try:
            self._log = self._log_path.open("w", encoding="utf-8", errors="surrogatepass", buffering=1)
        except OSError as error:
            raise as_output_error(error, self._log_path) from error

    def emit(self, event: Event) -> None:
        """Stamp an event, write it down and pass it on."""
        stamped = dataclasses.replace(event, seq=self._seq, t_s=round(self.elapsed_s, 6))
        self._seq += 1
        if self._log is not None:
            try:
                self._log.write(json.dumps(stamped.to_dict(), separators=(",", ":")) + "\n")
            except OSError as error:
                log, self._log = self._log, None
                with contextlib.suppress(OSError):  # what is buffered cannot be written either
                    log.close()
                raise as_output_error(error, self._log_path) from error
        self.finished = self.finished or isinstance(event, RunFinished)
        for listener in self._listeners:
            listener(stamped)

    def cancelled(self) -> bool:
        """Tell whether the run should stop."""
        return self._stop.is_set()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """A listener that turns events into `callback(message, fraction)`; fractions rise from 0.0 to exactly 1.0."""

    # What the layers take of the bar; the rest is sealing the folder.
    _LAYERS_SHARE = 0.99
    # What calibration takes of it, where there is any.
    _CALIBRATION_SHARE = 0.3

    def __init__(self, callback: Callable[[str, float], None]) -> None:
        self._callback = callback
        self._n_layers = 1
        self._done = 0
        self._last = 0.0
        self._base = 0.0

    def __call__(self, event: Event) -> None:
        """Translate one event."""
        if isinstance(event, RunStarted):
            self._n_layers = max(1, event.n_layers)
            self._callback(f"planned {event.n_layers} tensors", 0.0)
        elif isinstance(event, CalibrationProgress):
            self._base = self._CALIBRATION_SHARE
            self._last = max(self._last, self._base * event.fraction)
            self._callback(f"calibrating on {event.source}", self._last)
        elif isinstance(event, LayerProgress):
            self._callback(event.name, self._fraction(event.fraction))
        elif isinstance(event, LayerFinished):
            self._done += 1
            report = event.report
            kind = "kept" if report.get("action") == "kept" else f"INT{report.get('bit_width')}"
            self._callback(f"{event.name}: {kind}", self._fraction(0.0))
        elif isinstance(event, RunFinished):
            self._callback("finished", 1.0)

    def _fraction(self, part: float) -> float:
        # A layer that falls back, or is ordered otherwise, begins again; the bar waits for it.
        share = self._LAYERS_SHARE - self._base
        done = min((self._done + part) / self._n_layers, 1.0)
        self._last = max(self._last, self._base + share * done)
        return self._last
