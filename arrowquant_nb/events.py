"""What a run says while it works: small frozen events, each with a JSON form.

Events carry plain values only, so that a saved `events.jsonl` replays to the same picture.
This module knows nothing of files, widgets or kernels; a sink stamps `seq` and `t_s` when it records an event.
"""

from __future__ import annotations

import copy
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from arrowquant_nb.errors import MetadataError

EVENT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes
    ----------
    v : int
        Version of the event format.
    seq : int
        Position in the run, from 0; stamped by the recorder.
    t_s : float
        Seconds since the run began; stamped by the recorder.
    """

    kind: ClassVar[str] = "event"
    v: int = EVENT_VERSION
    seq: int = -1
    t_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the kind under `event`; the kind's own fields at their default are left out.

        A log has a few lines for every layer, so what says nothing is not repeated in each.
        """
        stamps = {"event": self.kind, "v": self.v, "seq": self.seq, "t_s": self.t_s}
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != _default(f)}
        return {**stamps, **copy.deepcopy(said)}


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The plan is made and the output is locked; `rows` has one dictionary per tensor of the plan.

    `model` is the model's name, never a path; `config` is the run's profile with the settings that differ from it.
    `given` is what the run was told to read, so that the same can be opened again: model (a path where it is no bundled
    sample), component, variant and calibration, None where that was left open. Logs of older versions have none of it.
    """

    kind: ClassVar[str] = "run_started"
    n_layers: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    given: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayersOrdered(Event):
    """The user has changed the settings of single layers while the run goes on; they are done (again) next.

    `rows` are the plan's rows of those layers, `config` the run's settings from now on, as in `RunStarted`.
    """

    kind: ClassVar[str] = "layers_ordered"
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CalibrationProgress(Event):
    """The model is being run to see what its layers are given; `fraction` of that is done, 0 to 1."""

    kind: ClassVar[str] = "calibration_progress"
    source: str
    fraction: float


@dataclass(frozen=True, kw_only=True)
class LayerStarted(Event):
    """Work on one layer begins; `index` counts from 0 to `n_layers - 1`."""

    kind: ClassVar[str] = "layer_started"
    name: str
    index: int
    n_layers: int
    bit_width: int


@dataclass(frozen=True, kw_only=True)
class LayerProgress(Event):
    """A tile of a large layer is done; `fraction` of its rows, 0 to 1."""

    kind: ClassVar[str] = "layer_progress"
    name: str
    fraction: float


@dataclass(frozen=True, kw_only=True)
class AttemptFinished(Event):
    """One attempt at a bit width was judged; `gates` lists value, threshold and verdict of each gate."""

    kind: ClassVar[str] = "attempt_finished"
    name: str
    bit_width: int
    method: str
    passed: bool
    sentence: str
    gates: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LayerFinished(Event):
    """A layer is decided; `report` is `LayerReport.to_dict()`, `reused` tells a layer taken over from the journal."""

    kind: ClassVar[str] = "layer_finished"
    name: str
    index: int
    n_layers: int
    report: dict[str, Any] = field(default_factory=dict)
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The manifest is written; `summary` holds the headline figures of the result."""

    kind: ClassVar[str] = "run_finished"
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunCancelled(Event):
    """The run stopped on request; `n_committed` layers are safe and the output is resumable."""

    kind: ClassVar[str] = "run_cancelled"
    n_committed: int


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """The run ended in an error whose text is `message`; committed layers are safe."""

    kind: ClassVar[str] = "run_failed"
    message: str


_KINDS: dict[str, type[Event]] = {
    c.kind: c
    for c in (
        RunStarted,
        LayersOrdered,
        CalibrationProgress,
        LayerStarted,
        LayerProgress,
        AttemptFinished,
        LayerFinished,
        RunFinished,
        RunCancelled,
        RunFailed,
    )
}


def event_from_dict(data: dict[str, Any]) -> Event:
    """Rebuild an event from `Event.to_dict`; an unknown kind or field raises `MetadataError`."""
    values = dict(data)
    kind = values.pop("event", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise MetadataError(f"unknown event {kind!r}; this version reads {sorted(_KINDS)}")
    try:
        return _KINDS[kind](**values)
    except TypeError as error:
        raise MetadataError(f"event {kind!r} has unreadable fields: {error}") from error
