"""A model's `forward` that notes the timestep it is given, for the layers inside.

It sets a context variable. A pair of forward hooks would not do: the token of one thread cannot be reset by another.
Knows no layer.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from arrowquant_nb.calibration.call_time import TIME_PARAMETERS, UNIT_CLASSES, noisy_end, times_of
from arrowquant_nb.errors import ConfigurationError, ValidationError
from arrowquant_nb.runtime.graph_time import GraphTime, is_recording
from arrowquant_nb.runtime.time import N_TIMESTEPS, TOLERANCE, ModelTime, at_time, counted_timesteps
from arrowquant_nb.runtime.tracing import constant_in_graphs, is_exporting
from arrowquant_nb.time_reading import TimeReading

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FollowedForward", "follow_reading", "follow_time", "time_argument", "unfollow_time"]


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
        if torch.compiler.is_dynamo_compiling():
            _refuse_strict()
        with at_time(self._time_of(given)):
            return forward(*args, **kwargs)

    @property
    def __code__(self) -> Any:
        """Of the model's own `forward`: `torch.export` names it in its messages."""
        return self.__wrapped__.__code__  # type: ignore[attr-defined]

    def _time_of(self, given: Any) -> ModelTime | GraphTime:
        recorded = isinstance(given, torch.Tensor) and is_recording()
        if self.reading.mask_token_id is not None:
            share = self._masked(given)
            return GraphTime.of(share, self.n_timesteps) if recorded else ModelTime.of(share, self.n_timesteps)
        return self._recorded_time(given) if recorded else self._called_time(given)

    def _masked(self, ids: Any) -> Any:
        masked = (ids == self.reading.mask_token_id).reshape(-1, ids.shape[-1])
        # Calibration counts masks so too, and everything masked is the last of the timesteps.
        return masked.double().mean(-1).mul(self.n_timesteps).round().clamp(max=self.n_timesteps - 1)

    def _called_time(self, given: Any) -> ModelTime:
        times, _ = times_of(given)
        if self.reading.time_range is None and times.size:
            self.reading = TimeReading((0.0, noisy_end(self.class_name, given, self.n_timesteps)))
        low, high = self.reading.time_range or (0.0, 1.0)
        unit = (times - low) / (high - low)
        if not ((unit > -TOLERANCE) & (unit < 1 + TOLERANCE)).all():
            raise ValidationError(self._beyond(f"{self.argument} {times.tolist()[:4]}, which", (low, high)))
        return ModelTime.of(np.clip(unit, 0, 1), 1)

    def _recorded_time(self, given: torch.Tensor) -> GraphTime:
        """Return the time of a tensor that has no values yet."""
        ends = self.reading.time_range
        if ends is None:
            if given.is_floating_point() and not self.class_name.startswith(UNIT_CLASSES):
                raise ConfigurationError(
                    f"{self.class_name}: nothing says yet whether its {self.argument} is a fraction: call the model "
                    "once before it is exported, or state n_timesteps"
                )
            ends = 0.0, noisy_end(self.class_name, 0, self.n_timesteps)
        return GraphTime.between(given, ends, self._beyond(f"a {self.argument} that", ends))

    def _beyond(self, said: str, ends: tuple[float, float]) -> str:
        low, high = ends
        return (
            f"{self.class_name} was called with {said} is not between {low:g} and {high:g}: say how it counts its "
            "timesteps with n_timesteps (1 for models that are given fractions), or with time_range=(value at the "
            "clean end, value at the noisy end) when it is calibrated"
        )


@constant_in_graphs
def _refuse_strict() -> None:
    """Refuse `torch.export(..., strict=True)`, whose compiler reads no context variable."""
    if is_exporting():
        raise ConfigurationError(
            "grids that follow the timestep cannot be exported with strict=True: export with strict=False"
        )


@functools.cache
def _leave_to_python() -> None:
    """Have `torch.compile` step over whatever reads the time, and compile the model's own forward.

    Called when a model is followed, not at import: it loads torch's compiler, about a second.
    """
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
