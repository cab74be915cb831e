"""The timestep of the model call in progress, for layers whose grids depend on it.

A context variable: threads, exceptions and models inside models each see their own. Knows no layer and no model.
"""

from __future__ import annotations

import math
import numbers
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.calibration.call_time import times_of
from arrowquant_nb.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arrowquant_nb.quantizers.time_tables import LayerTimeTable
    from arrowquant_nb.runtime.graph_time import GraphTime

__all__ = ["ModelTime", "at_time", "counted_timesteps", "current_time", "time_context"]

N_TIMESTEPS = 1000
TOLERANCE = 1e-6
"""Of normalised times: what rounding of a fraction may add."""


@dataclass(frozen=True)
class ModelTime:
    """When a model is called: normalised time, 0 clean to 1 noise, float32 values."""

    values: tuple[float, ...]
    """One for the whole batch, or one per sample."""

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        if not self.values:
            raise ValidationError("a time of no sample: leave a batch of none out")
        wrong = next((v for v in self.values if not 0.0 <= v <= 1.0), None)
        if wrong is not None:
            raise ValidationError(f"normalised time {wrong} is not in 0..1")

    @classmethod
    def of(cls, time: Any, n_timesteps: float = N_TIMESTEPS) -> ModelTime:
        """Normalise a timestep: a number, an array, or a tensor of one or [batch] elements; of tokens the noisiest.

        Parameters
        ----------
        time
            As the model is given it.
        n_timesteps
            Training timesteps that it counts; 1 for a fraction.

        Raises
        ------
        ConfigurationError
            What is no number, or a number of timesteps that none can be divided by.
        ValidationError
            A timestep outside 0..n_timesteps.

        """
        given, _ = times_of(time)
        n_timesteps = counted_timesteps(n_timesteps)
        values = (given / n_timesteps).astype(np.float32)
        wrong = given[~((values >= 0) & (values <= 1))]
        if wrong.size:
            raise ValidationError(_beyond(f"timestep {wrong[0]:g}", n_timesteps))
        first = values[:1] if values.size and (values == values[0]).all() else values
        return cls(tuple(first.tolist()))

    def groups_in(self, table: LayerTimeTable) -> tuple[int, ...]:
        """Return the group of a layer's table for each value; ValidationError for a time that it does not cover."""
        return tuple(table.group_at(v) for v in self.values)


def counted_timesteps(n_timesteps: Any) -> float:
    """Return a number of training timesteps, refusing what cannot be one."""
    is_number = isinstance(n_timesteps, numbers.Real) and not isinstance(n_timesteps, bool)
    counted = float(n_timesteps) if is_number else math.nan
    if not 0 < counted < math.inf:
        raise ConfigurationError(f"n_timesteps {n_timesteps!r} is not a finite number above 0")
    return counted


_time: ContextVar[ModelTime | GraphTime | None] = ContextVar("arrowquant_nb_time", default=None)


def current_time() -> ModelTime | GraphTime | None:
    """Return the time of the model call in progress, None outside of one; a tensor's where a graph is recorded."""
    return _time.get()


@contextmanager
def time_context(time: Any, n_timesteps: float = N_TIMESTEPS) -> Iterator[ModelTime | GraphTime]:
    """Say at which timestep the layers inside the block are called.

    Parameters
    ----------
    time : a number, or one number per sample
        The timestep, or with ``n_timesteps=1`` the fraction of time or of masked tokens.
    n_timesteps : training timesteps of the model.

    Raises
    ------
    ConfigurationError
        A time that is no number.
    ValidationError
        A timestep outside 0..n_timesteps.

    Examples
    --------
    >>> with time_context(250):
    ...     current_time()
    ModelTime(values=(0.25,))

    """
    moment = _moment(time, n_timesteps)
    with at_time(moment):
        yield moment


def _moment(time: Any, n_timesteps: float) -> ModelTime | GraphTime:
    if isinstance(time, ModelTime):
        return time
    if hasattr(time, "detach"):
        from arrowquant_nb.runtime.graph_time import GraphTime, is_recording  # noqa: PLC0415 - needs torch

        if is_recording():
            ends = (0.0, counted_timesteps(n_timesteps))
            return GraphTime.between(time, ends, _beyond("a timestep", ends[1]))
    return ModelTime.of(time, n_timesteps)


def _beyond(said: str, n_timesteps: float) -> str:
    return (
        f"{said} is not in 0..{n_timesteps:g}: state how the model counts its timesteps with n_timesteps (1 for models "
        "that are given fractions)"
    )


@contextmanager
def at_time(moment: ModelTime | GraphTime) -> Iterator[None]:
    """Have the layers inside the block know a time."""
    token = _time.set(moment)
    try:
        yield
    finally:
        _time.reset(token)
