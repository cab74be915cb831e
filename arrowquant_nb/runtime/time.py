"""The timestep of the model call in progress, for layers whose grids depend on it.

A context variable that the model's wrapped `forward` sets: threads, exceptions and models inside models each see their
own. A pair of forward hooks would not do: the token of one thread cannot be reset by another. Knows no layer.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.calibration.call_time import TIME_PARAMETERS, noisy_end, times_of
from arrowquant_nb.errors import ConfigurationError, ValidationError
from arrowquant_nb.time_reading import TimeReading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arrowquant_nb.quantizers.time_tables import LayerTimeTable

__all__ = [
    "FollowedForward",
    "ModelTime",
    "counted_timesteps",
    "current_time",
    "follow_reading",
    "follow_time",
    "time_argument",
    "time_context",
    "unfollow_time",
]

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
            raise ValidationError(
                f"timestep {wrong[0]:g} is not in 0..{n_timesteps:g}: state how the model counts its timesteps with "
                "n_timesteps (1 for models that are given fractions)"
            )
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


_time: ContextVar[ModelTime | None] = ContextVar("arrowquant_nb_time", default=None)


def current_time() -> ModelTime | None:
    """Return the time of the model call in progress, None outside of one."""
    return _time.get()


@contextmanager
def time_context(time: Any, n_timesteps: float = N_TIMESTEPS) -> Iterator[ModelTime]:
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
    moment = time if isinstance(time, ModelTime) else ModelTime.of(time, n_timesteps)
    token = _time.set(moment)
    try:
        yield moment
    finally:
        _time.reset(token)


def time_argument(forward: Callable[..., Any]) -> str | None:
    """Return the name of the timestep among the parameters of a model's forward, None when it has none."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in TIME_PARAMETERS if name in parameters), None)


class FollowedForward:
    """A model's `forward` that first notes its timestep; keeps name, docstring and signature.

    An object and not a closure, so that a copied or unpickled model follows its own time.
    """

    def __init__(self, model: Any, argument: str, reading: TimeReading, n_timesteps: int) -> None:
        functools.update_wrapper(self, model.forward)
        self.class_name = type(model).__name__
        self.argument = argument
        self.reading = reading
        self.n_timesteps = n_timesteps
        # Parameters before the timestep; the bound method has no self.
        self._place = list(inspect.signature(model.forward).parameters).index(argument)
        _leave_to_python()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _leave_to_python()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with its time set."""
        given = args[self._place] if len(args) > self._place else kwargs.get(self.argument)
        forward: Callable[..., Any] = self.__wrapped__  # type: ignore[attr-defined]
        if given is None:
            return forward(*args, **kwargs)
        token = _time.set(self._time_of(given))
        try:
            return forward(*args, **kwargs)
        finally:
            _time.reset(token)

    def _time_of(self, given: Any) -> ModelTime:
        if self.reading.mask_token_id is not None:
            masked = (given == self.reading.mask_token_id).reshape(-1, given.shape[-1])
            # Calibration counts masks so too, and everything masked is the last of the timesteps.
            share = masked.double().mean(-1).mul(self.n_timesteps).round().clamp(max=self.n_timesteps - 1)
            return ModelTime.of(share, self.n_timesteps)
        times, _ = times_of(given)
        if self.reading.time_range is None and times.size:
            self.reading = TimeReading((0.0, noisy_end(self.class_name, given, self.n_timesteps)))
        low, high = self.reading.time_range or (0.0, 1.0)
        unit = (times - low) / (high - low)
        if not ((unit > -TOLERANCE) & (unit < 1 + TOLERANCE)).all():
            raise ValidationError(
                f"{self.class_name} was called with {self.argument} {times.tolist()[:4]}, which is not "
                f"between {low:g} and {high:g}: say how it counts its timesteps with n_timesteps (1 for models that "
                "are given fractions), or with time_range=(value at the clean end, value at the noisy end) when it is "
                "calibrated"
            )
        return ModelTime.of(np.clip(unit, 0, 1), 1)


@functools.cache
def _leave_to_python() -> None:
    """Have `torch.compile` step over whatever reads the time, and compile the model's own forward.

    Called when a model is followed, not at import: it loads torch's compiler, about a second.
    """
    import torch  # noqa: PLC0415 - the rest of this module is of use without it

    torch.compiler.disable(FollowedForward.__call__, recursive=False)  # marks its code
    for kind, name in ((FollowedForward, "_time_of"), (ModelTime, "groups_in")):
        setattr(kind, name, torch.compiler.disable(getattr(kind, name), reason="reads the timestep"))


def unfollow_time(model: Any) -> None:
    """Give a model that `follow_time` wrapped its own `forward` back; any other stays as it is."""
    if isinstance(getattr(model, "forward", None), FollowedForward):
        del model.forward


def follow_time(
    model: Any,
    n_timesteps: float | None = None,
    argument: str | None = None,
    mask_token_id: int | None = None,
    time_range: tuple[float, float] | None = None,
) -> Any:
    """Let a model's layers know the timestep that its `forward` is given, by position or by keyword.

    Parameters
    ----------
    model
        A torch module; its `forward` is wrapped in place. Doing so twice is doing it once.
    n_timesteps
        Training timesteps that the argument counts; 1 for fractions. None: as calibration finds out, 1 for the classes
        known to be given fractions (Flux and its kin) and where the first time seen is a fraction, else 1000.
    argument
        Name of the timestep; None finds `timestep`, `timesteps` or `t`.
    mask_token_id
        Of a masked language model: time is the fraction of `input_ids` (or `argument`) that are this token, per sample.
    time_range
        Values of the timestep at the clean and the noisy end, where it counts from neither 0 to 1 nor 0 to
        `n_timesteps`.

    Returns
    -------
    module
        The model itself.

    Raises
    ------
    ConfigurationError, MetadataError
        Its `forward` has no such argument, or times cannot be counted so.

    """
    ends = time_range or (None if n_timesteps is None else (0.0, counted_timesteps(n_timesteps)))
    return follow_reading(model, TimeReading(ends, mask_token_id), N_TIMESTEPS, argument)


def follow_reading(model: Any, reading: TimeReading, n_timesteps: int, argument: str | None = None) -> Any:
    """Do as `follow_time`, reading the time of calls as calibration did.

    Parameters
    ----------
    model, argument
        As there.
    reading
        Of the tables, or what the user says.
    n_timesteps
        Training timesteps of the model.

    """
    unfollow_time(model)
    name = argument or (time_argument(model.forward) if reading.mask_token_id is None else "input_ids")
    if name is None or name not in inspect.signature(model.forward).parameters:
        raise ConfigurationError(
            f"{type(model).__name__}.forward has no argument {name or 'timestep'!r}: name it with argument=, or call "
            "the model inside `with time_context(t):`"
        )
    model.forward = FollowedForward(model, name, reading, n_timesteps)
    return model
