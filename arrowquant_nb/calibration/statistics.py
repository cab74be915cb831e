"""What calibration knows of a model: per layer, what its inputs looked like at every step of the trajectories.

Plain arrays that refuse bad values when they are put together, and their hashes. Knows nothing of how the inputs came
about, of files, or of what is done with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from arrowquant_nb.errors import ConfigurationError, MetadataError, ShapeMismatchError
from arrowquant_nb.time_reading import UNKNOWN_READING, TimeReading

if TYPE_CHECKING:
    from numpy.typing import NDArray

CALIBRATION_VERSION: Final = 2
"""Raised whenever the same model and settings would give other arrays, so that nothing older is taken for the same."""
N_BINS: Final = 2048
MAX_STEPS: Final = 1000
"""Different timesteps of one calibration."""
SOURCES: Final = ("capture", "synthetic", "file")
ARRAYS: Final[Mapping[str, tuple[type, int]]] = MappingProxyType(
    {
        "times": (np.int64, 1),
        "hessian": (np.float64, 2),
        "channel_min": (np.float32, 2),
        "channel_max": (np.float32, 2),
        "histogram": (np.int64, 2),
        "second_moment": (np.float64, 1),
        "rows": (np.float32, 3),
        "held_out": (np.float32, 3),
    }
)
"""Dtype and dimensions of every array of a `LayerCapture`."""


@dataclass(frozen=True)
class CalibrationSettings:
    """What decides a calibration besides the model."""

    n_samples: int = 128
    """Trajectories that build the statistics, 1..4096."""
    seed: int = 0
    """Of the starting noise, or of the text; the held-out trajectories have a seed of their own."""
    rows_per_step: int = 32
    """Input rows kept per step, at most."""
    held_out_rows_per_step: int = 32
    """Input rows of other trajectories kept per step, at most."""
    batch_samples: int = 64
    """Trajectories followed at a time; bounds the memory."""
    n_timesteps: int = 1000
    """Training timesteps of the model."""
    n_steps: int = 25
    """Timesteps of synthetic inputs; a trajectory has its own."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        limits = {"n_samples": 4096, "rows_per_step": 1 << 16, "held_out_rows_per_step": 1 << 16}
        limits |= {"batch_samples": 4096, "n_timesteps": 1 << 20, "n_steps": MAX_STEPS}
        for name, most in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ConfigurationError(f"calibration: {name} is {value!r}; it must be an integer in 1..{most}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 1 << 63:
            raise ConfigurationError(f"calibration: seed is {self.seed!r}; it must be an integer in 0..2^63-1")

    @property
    def n_held_out(self) -> int:
        """Held-out trajectories: a quarter as many, and at most 32, since they give a few rows per step only."""
        return max(1, min(32, self.n_samples // 4))

    def to_dict(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class LayerCapture:
    """The inputs of one layer along trajectories of T steps; arrays are read-only."""

    name: str
    """The weight's full name in the checkpoint."""
    input_name: str
    """The first layer that has the very same input, such as q for k and v; these share their arrays."""
    times: NDArray[np.int64]
    """Training timesteps (T,), strictly falling: most noisy first."""
    hessian: NDArray[np.float64]
    """Mean over steps of the mean over rows x of ``x x^T``, (columns, columns); fit trajectories only."""
    n_rows: int
    """Rows that entered the Hessian, over all steps."""
    channel_min: NDArray[np.float32]
    """Smallest input per step and column, (T, columns)."""
    channel_max: NDArray[np.float32]
    """Largest, likewise."""
    histogram: NDArray[np.int64]
    """Counts of inputs per step, of at most 1,024 random rows of a call, (T, 2048) equally wide bins over
    `histogram_range`."""
    histogram_range: tuple[float, float]
    """Lower end of the first bin and upper end of the last."""
    second_moment: NDArray[np.float64]
    """Mean of ``x^2`` over all inputs of a step, (T,)."""
    rows: NDArray[np.float32]
    """A seeded sample of fit rows, the same number R per step, (T, R, columns)."""
    held_out: NDArray[np.float32]
    """A seeded sample of rows of other trajectories, (T, R2, columns); never in the Hessian."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together or hold what no layer's input could."""
        for field, (dtype, ndim) in ARRAYS.items():
            array = getattr(self, field)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
                found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ShapeMismatchError(
                    f"calibration of {self.name!r}: {field} must be {np.dtype(dtype)} with {ndim} axes, got {found}"
                )
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)
        self._check_sizes()
        self._check_values()

    @property
    def columns(self) -> int:
        """Input channels of the layer, of the matrix view for a convolution."""
        return int(self.hessian.shape[1])

    @property
    def n_steps(self) -> int:
        """Steps."""
        return len(self.times)

    def _check_sizes(self) -> None:
        steps, columns = self.n_steps, self.columns
        expected = {
            "hessian": (columns, columns),
            "channel_min": (steps, columns),
            "channel_max": (steps, columns),
            "histogram": (steps, N_BINS),
            "second_moment": (steps,),
            "rows": (steps, self.rows.shape[1], columns),
            "held_out": (steps, self.held_out.shape[1], columns),
        }
        for field, shape in expected.items():
            found = getattr(self, field).shape
            if found != shape or 0 in shape:
                raise ShapeMismatchError(
                    f"calibration of {self.name!r}: {field} has shape {found}, but {steps} steps of {columns} columns "
                    f"need {shape} with nothing empty"
                )

    def _check_values(self) -> None:
        for field in ("hessian", "channel_min", "channel_max", "second_moment", "rows", "held_out"):
            finite = np.isfinite(getattr(self, field))
            if not finite.all():
                place = np.unravel_index(int(np.argmin(finite)), finite.shape)
                self._refuse(f"{field} holds NaN or infinity, first at {tuple(int(i) for i in place)}")
        if self.times[0] < 0 or self.times[-1] < 0 or (np.diff(self.times) >= 0).any():
            self._refuse(f"times must fall strictly and not be negative, got {self.times.tolist()[:20]}")
        if (self.channel_min > self.channel_max).any():
            self._refuse("a channel_min lies above its channel_max")
        if (np.diag(self.hessian) < 0).any() or (self.second_moment < 0).any():
            self._refuse("the diagonal of the hessian and second_moment are means of squares and cannot be negative")
        if not np.array_equal(self.hessian, self.hessian.T):
            self._refuse("hessian is not symmetric")
        low, high = self.histogram_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            self._refuse(f"histogram_range {self.histogram_range} is not a finite range")
        if (self.histogram < 0).any() or (self.histogram.sum(1) == 0).any():
            self._refuse("a step's histogram is empty or holds a negative count")
        if self.n_rows < self.n_steps:
            self._refuse(f"n_rows {self.n_rows} is less than one row for each of {self.n_steps} steps")

    def _refuse(self, what: str) -> None:
        raise MetadataError(f"calibration of {self.name!r}: {what}; calibrate again")


@dataclass(frozen=True, eq=False)
class Calibration(Mapping[str, LayerCapture]):
    """The captures of a model's layers by weight name, and what they were made from."""

    layers: Mapping[str, LayerCapture]
    """By weight name, in the order of use."""
    source: str
    """capture: the model's own trajectories; synthetic: noise; file: records that the user gave."""
    settings: CalibrationSettings
    """What decided it besides the model."""
    model_hash: str
    """xxh3-128 of the model's weights (`model_hash`)."""
    records_hash: str = ""
    """xxh3-128 of the user's record file, "" without one."""
    unobserved: tuple[str, ...] = ()
    """Layers that were to be recorded and were not used at every timestep; they are quantized without calibration."""
    time_reading: TimeReading = UNKNOWN_READING
    """How the calls said their time."""

    def __post_init__(self) -> None:
        """Refuse a mixture of models or steps."""
        if self.source not in SOURCES or not self.layers:
            raise MetadataError(
                f"a calibration has one of the sources {', '.join(SOURCES)} and at least one layer, got "
                f"{self.source!r} and {len(self.layers)} layers"
            )
        first = next(iter(self.layers.values()))
        for name, layer in self.layers.items():
            if layer.name != name or layer.input_name not in self.layers:
                raise MetadataError(f"calibration of {name!r} is filed under or shares with a name that is not there")
            if int(layer.times[0]) >= self.settings.n_timesteps:
                raise MetadataError(
                    f"calibration of {name!r}: timestep {layer.times[0]} is not in 0..{self.settings.n_timesteps - 1}, "
                    "the training timesteps of the model"
                )
            if not np.array_equal(layer.times, first.times):
                raise MetadataError(f"calibration of {name!r} has other timesteps than that of {first.name!r}")
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __getitem__(self, name: str) -> LayerCapture:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Names of the layers that share an input, by the first of them."""
        shared: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            shared.setdefault(layer.input_name, []).append(name)
        return {name: tuple(names) for name, names in shared.items()}

    @property
    def key(self) -> str:
        """What this calibration was made from: equal keys are the same model, settings and version."""
        return calibration_key(self.source, self.model_hash, self.settings, tuple(self.layers), self.records_hash)

    @cached_property
    def data_hash(self) -> str:
        """xxh3-128 of every array and of how time was read: equal hashes are the same statistics."""
        digest = xxhash.xxh3_128()
        if self.time_reading != UNKNOWN_READING:
            digest.update(json.dumps(self.time_reading.to_dict()).encode())
        for name, sharing in self.inputs.items():
            layer = self.layers[name]
            digest.update(json.dumps([name, sharing, layer.n_rows, [v.hex() for v in layer.histogram_range]]).encode())
            for field in ARRAYS:
                array = np.ascontiguousarray(getattr(layer, field))
                digest.update(f"{field}{array.shape}".encode())
                digest.update(array.data)
        return digest.hexdigest()

    def check_layer(self, name: str, columns: int) -> LayerCapture:
        """Return the capture of a layer that has so many columns.

        Raises
        ------
        MetadataError
            The layer was not calibrated.
        ShapeMismatchError
            It was, with another number of columns: the calibration is of another model.

        """
        if name not in self.layers:
            raise MetadataError(f"the calibration has no layer {name!r}; calibrate the model that is quantized")
        layer = self.layers[name]
        if layer.columns != columns:
            raise ShapeMismatchError(
                f"the calibration of {name!r} has {layer.columns} columns, the weight {columns}: it is of another "
                "model; calibrate the model that is quantized"
            )
        return layer


def calibration_key(
    source: str, model: str, settings: CalibrationSettings, layers: tuple[str, ...], records: str = ""
) -> str:
    """Return the xxh3-128 of everything that decides a calibration."""
    parts = [CALIBRATION_VERSION, source, model, settings.to_dict(), layers, records]
    return xxhash.xxh3_128(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def model_hash(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the xxh3-128 over name, dtype, shape and bytes of every tensor, in the order of names."""
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
