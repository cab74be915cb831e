"""Calibration from model inputs that the user gave: each record is one sample at one timestep.

    {"data": {"hidden_states": [...], "class_labels": [3]}, "timestep": 759,
     "shape": {"hidden_states": [1, 8, 8], "class_labels": []}}

`data` holds flat lists, `shape` the shape of one sample without the batch axis. A model with one input may be given
plain lists instead of objects. The model says which inputs there are; a record that does not fit is an error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np
import xxhash

from arrowquant_nb.calibration.capture import Call, record
from arrowquant_nb.calibration.record_files import read_records
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings, model_hash
from arrowquant_nb.errors import MetadataError, ShapeMismatchError
from arrowquant_nb.samples.runnable import Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.calibration.capture import Progress
    from arrowquant_nb.samples.runnable import RunnableModel

MAX_NBYTES: Final = 1 << 30
"""Records of one file, as arrays."""
MAX_FLOAT32: Final = float(np.finfo(np.float32).max)


class Timed(Protocol):
    """Something at a timestep."""

    @property
    def time(self) -> int:
        """Training timestep."""
        ...


T = TypeVar("T", bound=Timed)


class _Sample(NamedTuple):
    """One checked record."""

    time: int
    inputs: dict[str, NDArray[np.generic]]


def calibrate_on_records(
    model: RunnableModel,
    path: Path,
    settings: CalibrationSettings | None = None,
    layers: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run the records of a file through a model and record the inputs of its layers.

    Parameters
    ----------
    model, layers, progress
        See `capture`.
    path
        `*.jsonl`, `*.parquet` or `*.arrow`, see `read_records`.
    settings
        Timesteps of the records are joined to at most `n_steps` neighbouring ones with two records or more each. A
        seeded quarter of each (32 at most) is held out, and of the rest at most `n_samples` are used.

    Raises
    ------
    MetadataError, ShapeMismatchError
        A record is not one of this model's; the message names file, record number and field.

    """
    settings = settings or CalibrationSettings()
    template = next(iter(model.trajectories(1, settings.seed)))
    samples = _read(path, {name: values[0] for name, values in template.inputs.items()}, settings.n_timesteps)
    steps = [
        _split(step, number, settings) for number, step in enumerate(joined_steps(str(path), samples, settings.n_steps))
    ]
    try:
        captured = record(
            model,
            _calls([(s.time, s.fit) for s in steps], settings.batch_samples, 0.0),
            _calls([(s.time, s.held_out) for s in steps], settings.batch_samples, 0.5),
            settings,
            layers,
            progress,
        )
    except IndexError as error:
        raise MetadataError(f"{path}: a record holds an index that the model does not have ({error})") from error
    except MetadataError as error:
        raise MetadataError(f"{path}: {error}") from error
    return Calibration(captured, "file", settings, model_hash(model.weights), file_hash(path))


def file_hash(path: Path) -> str:
    """Return the xxh3-128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


class _Divided(NamedTuple):
    """One step: its latest timestep, and its samples."""

    time: int
    fit: list[_Sample]
    held_out: list[_Sample]


def _read(path: Path, expected: Mapping[str, NDArray[np.generic]], n_timesteps: int) -> list[_Sample]:
    samples: list[_Sample] = []
    n_values = sum(values.size for values in expected.values())
    nbytes = 0
    for number, fields in read_records(path, n_values):
        where = f"{path}, record {number}"
        time = fields["timestep"]
        if not isinstance(time, int) or isinstance(time, bool) or not 0 <= time < n_timesteps:
            raise MetadataError(f"{where}: timestep is {str(time)[:80]}; it must be an integer in 0..{n_timesteps - 1}")
        data, shapes = (_by_name(where, field, fields[field], expected) for field in ("data", "shape"))
        inputs = {name: _values(where, name, data[name], shapes[name], expected[name]) for name in expected}
        nbytes += sum(values.nbytes for values in inputs.values())
        if nbytes > MAX_NBYTES:
            raise MetadataError(f"{where}: the records up to here take more than {MAX_NBYTES:,} bytes; give fewer")
        samples.append(_Sample(time, inputs))
    return samples


def _by_name(where: str, field: str, value: object, expected: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
    """Return a field by input name; a plain list stands for the only input."""
    if isinstance(value, list) and len(expected) == 1:
        return {next(iter(expected)): value}
    if not isinstance(value, dict) or set(value) != set(expected):
        found = ", ".join(sorted(map(str, value)))[:200] if isinstance(value, dict) else type(value).__name__
        raise MetadataError(
            f"{where}: {field} must name each input of the model once ({', '.join(expected)}), found {found}"
        )
    return value


def _values(where: str, name: str, data: object, shape: object, expected: NDArray[np.generic]) -> NDArray[np.generic]:
    """Check one input of one record and return it, in the model's own dtype."""
    if not isinstance(shape, list) or shape != list(expected.shape) or any(isinstance(n, bool) for n in shape):
        raise ShapeMismatchError(
            f"{where}: the shape of {name!r} is {str(shape)[:80]}, the model takes {list(expected.shape)} per sample"
        )
    if not isinstance(data, list) or len(data) != expected.size:
        found = f"{len(data):,} values" if isinstance(data, list) else type(data).__name__
        raise ShapeMismatchError(
            f"{where}: the data of {name!r} must be a flat list of {expected.size:,} numbers, found {found}"
        )
    integers = expected.dtype.kind in "iu"
    for value in data:
        right = isinstance(value, int) if integers else isinstance(value, (int, float))
        if not right or isinstance(value, bool) or (integers and not 0 <= value < 1 << 31):
            kind = "integers of 0 or more" if integers else "numbers"
            raise MetadataError(f"{where}: the data of {name!r} must be {kind}, found {str(value)[:80]!r}")
        if not integers and not abs(value) <= MAX_FLOAT32:  # NaN, infinity, or beyond float32
            raise MetadataError(
                f"{where}: the data of {name!r} must be finite float32 numbers, found {str(value)[:80]}"
            )
    return np.array(data, expected.dtype).reshape(expected.shape)


def _split(samples: list[_Sample], number: int, settings: CalibrationSettings) -> _Divided:
    order = np.random.default_rng([settings.seed, number]).permutation(len(samples))
    n_held_out = max(1, min(32, len(samples) // 4))
    shuffled = [samples[i] for i in order]
    return _Divided(
        max(sample.time for sample in samples),
        shuffled[n_held_out : n_held_out + settings.n_samples],
        shuffled[:n_held_out],
    )


def joined_steps(where: str, samples: list[T], n_steps: int) -> list[list[T]]:
    """Join neighbouring timesteps until each step has enough samples: two, or more where there are many timesteps.

    Parameters
    ----------
    where
        Where they come from, for the message.
    samples
        Anything with a timestep `time`.
    n_steps
        Steps at most.

    Raises
    ------
    MetadataError
        There is one sample only.

    """
    if len(samples) < 2:
        raise MetadataError(f"{where}: holds one record; at least two are needed, since one is held out")
    by_time: dict[int, list[T]] = {}
    for sample in samples:
        by_time.setdefault(sample.time, []).append(sample)
    enough = 2 if len(by_time) <= n_steps else max(2, math.ceil(len(samples) / n_steps))
    steps: list[list[T]] = [[]]
    for time in sorted(by_time):
        if len(steps[-1]) >= enough:
            steps.append([])
        steps[-1] += by_time[time]
    if len(steps) > 1 and len(steps[-1]) < 2:
        last = steps.pop()
        steps[-1] += last
    return steps


def _calls(steps: list[tuple[int, list[_Sample]]], batch_samples: int, begin: float) -> Iterator[Call]:
    """Yield a call for up to a batch of samples of one timestep; a step is recorded under its latest timestep."""
    for number, (recorded, samples) in enumerate(steps):
        for time in sorted({sample.time for sample in samples}, reverse=True):
            same = [sample.inputs for sample in samples if sample.time == time]
            for start in range(0, len(same), batch_samples):
                batch = same[start : start + batch_samples]
                inputs = {name: np.stack([sample[name] for sample in batch]) for name in batch[0]}
                done = begin + 0.5 * number / len(steps)
                yield Call(Step(inputs, time), len(batch) / len(samples), done, recorded)
