"""The time at which a denoiser is called, read from the call itself, as an integer training timestep.

A timestep given by position or by name, one for the batch or one per sample, counted 0 to 1000 or 0 to 1; for a masked
language model the share of masked tokens. Needs no torch: whatever has the methods of a tensor will do.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowquant_nb.errors import ConfigurationError, MetadataError
from arrowquant_nb.time_reading import TimeReading, is_time_range

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

TIME_PARAMETERS: Final = ("timestep", "timesteps", "t", "timestep_ratio", "time", "sigma", "noise_level")
"""What forward methods of diffusers call the time, the commonest first."""
IDS: Final = "input_ids"
UNIT_CLASSES: Final = (
    "AuraFlow", "Chroma", "Flux", "Krea2", "LongCatImage", "Lumina2", "LuminaNextDiT", "NucleusMoEImage", "OmniGen",
    "OvisImage", "QwenImage", "StableAudio", "ZImage",
)  # fmt: skip
"""Beginnings of class names whose pipelines in diffusers 0.42 count time from 0 to 1 (`timestep / 1000`)."""
SHOWN: Final = 80
"""Characters of a value in a message."""


def noisy_end(class_name: str, time: Any, n_timesteps: int) -> float:
    """Return the value that stands for pure noise, from the first time that a model is called with.

    Parameters
    ----------
    class_name
        The model's class.
    time
        A number, an array or a tensor.
    n_timesteps
        Training timesteps.

    Returns
    -------
    float
        1.0 for the classes that diffusers calls so, and where a float of at most 1 comes first (a trajectory starts at
        its noisiest time); else `n_timesteps`.

    """
    raw, counted = times_of(time)
    fraction = class_name.startswith(UNIT_CLASSES) or not (counted or raw.max() > 1)
    return 1.0 if fraction else float(n_timesteps)


class CallTime:
    """Reads the time of calls of one model.

    Parameters
    ----------
    forward : the model's forward method.
    class_name : the model's class.
    n_timesteps : training timesteps.
    mask_token_id : id of the mask token, for models that are given `input_ids` and no timestep.
    time_range : the values of the timestep that stand for 0 and for `n_timesteps`; None finds out: (0, 1) for the
        classes that diffusers calls so, and where the first time seen is a fraction or 1.0; else (0, n_timesteps).
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        class_name: str,
        n_timesteps: int = 1000,
        mask_token_id: int | None = None,
        time_range: tuple[float, float] | None = None,
    ) -> None:
        self._signature = inspect.signature(forward)
        names = self._signature.parameters
        self.parameter = next((name for name in TIME_PARAMETERS if name in names), None)
        """Name of the timestep among the parameters, None where there is none."""
        self.counts_masks = self.parameter is None and IDS in names and mask_token_id is not None
        """Whether the share of masked tokens is the time."""
        self._class_name = class_name
        self._mask_token_id = mask_token_id
        self.n_timesteps = n_timesteps
        if time_range is not None and not is_time_range(time_range):
            raise ConfigurationError(f"calibration: time_range {time_range} is not two different finite numbers")
        self.time_range = time_range
        """Values that stand for 0 and `n_timesteps`; None until the first call shows them."""

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[NDArray[np.int64], int]:
        """Return the training timesteps of a call, (1,) or one per sample, and the number of its samples.

        Raises
        ------
        MetadataError
            The call has no time, or one out of range.

        """
        values = self._signature.bind_partial(*args, **kwargs).arguments
        n_samples = next((n for n in map(_n_samples, values.values()) if n), 1)
        if self.counts_masks:
            times = self._masked(values.get(IDS))
        elif self.parameter is None:
            times = np.zeros(1, np.int64)
        else:
            times = self._timesteps(values.get(self.parameter))
        if (times == times[0]).all():
            times = times[:1]
        return times, n_samples

    @property
    def reading(self) -> TimeReading:
        """How the calls so far said their time."""
        if self.counts_masks:
            return TimeReading(mask_token_id=self._mask_token_id)
        ends = self.time_range
        return TimeReading(None if ends is None else (float(ends[0]), float(ends[1])))

    def at(self, unit: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the training timesteps of times between 0 and 1."""
        return np.minimum(np.rint(unit * self.n_timesteps), self.n_timesteps - 1).astype(np.int64)

    def _timesteps(self, value: Any) -> NDArray[np.int64]:
        if value is None:
            raise MetadataError(f"calibration: {self._class_name} was called without its {self.parameter!r}; give it")
        raw, _ = times_of(value)
        self._refuse_no_samples(raw)
        if self.time_range is None:
            self.time_range = (0.0, noisy_end(self._class_name, value, self.n_timesteps))
        low, high = self.time_range
        unit = (raw - low) / (high - low)
        if not ((unit > -1e-6) & (unit < 1 + 1e-6)).all():
            raise MetadataError(
                f"calibration: {self._class_name} was called with {self.parameter} {raw.tolist()[:4]}, which is not "
                f"between {low:g} and {high:g}; give time_range=(value at the clean end, value at the noisy end)"
            )
        return self.at(np.clip(unit, 0, 1))

    def _refuse_no_samples(self, values: NDArray[Any]) -> None:
        if not values.size:
            raise MetadataError(f"calibration: {self._class_name} was called with a batch of no samples; leave it out")

    def _masked(self, ids: Any) -> NDArray[np.int64]:
        if ids is None:
            raise MetadataError(f"calibration: {self._class_name} was called without {IDS!r}; give it token ids")
        tokens = np.atleast_2d(np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids))
        self._refuse_no_samples(tokens)
        return self.at((tokens == self._mask_token_id).mean(1))


def _n_samples(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return len(value)
    return int(value.shape[0]) if getattr(value, "shape", ()) else 0


def times_of(value: Any) -> tuple[NDArray[np.float64], bool]:
    """Return the time of every sample, or one, as float64 (n,), and whether it is counted in integers.

    Where every token has a time of its own (Wan with a given first frame), a sample's is the noisiest.

    Raises
    ------
    ConfigurationError
        It is no real number, or some; how large it may be is not looked at.

    """
    try:
        given = _array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(_no_time(value)) from error
    if given.dtype.kind not in "iuf" and given.size:
        raise ConfigurationError(_no_time(value))
    raw = given.astype(np.float64)
    raw = raw.reshape(len(raw), -1).max(1) if raw.ndim > 1 and raw.size else raw.reshape(-1)
    return raw, given.dtype.kind in "iu"


def _array(value: Any) -> NDArray[Any]:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach()
    return np.asarray((value.double() if value.is_floating_point() else value).cpu())  # NumPy has no bfloat16


def _no_time(value: Any) -> str:
    said = " ".join(repr(value).split())
    said = said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
    return f"the time {said} is not a real number or one per sample: give such as 250, or [250, 500]"
