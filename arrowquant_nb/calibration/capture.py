"""Capture: run a model along its own trajectories with its own weights and record what every layer is given.

Both guidance branches are in a trajectory's batch, and every step that is used is recorded, so the statistics cover
what the layers will see. Needs a `RunnableModel` and nothing else of it.
"""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from arrowquant_nb.calibration.inputs import FIT, HELD_OUT, InputStatistics, digest_of
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings, model_hash
from arrowquant_nb.errors import ConfigurationError, MetadataError, ShapeMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from numpy.typing import NDArray

    from arrowquant_nb.calibration.statistics import LayerCapture
    from arrowquant_nb.samples.runnable import Linear, RunnableModel, Step

    Progress = Callable[[float], None]
    Observe = Callable[[str, NDArray[np.float32], int], None]

FIRST_LOOK = 2
"""Calls that find the histograms' ranges and the layers that share an input."""
_SPLITS = {FIT: "calibration", HELD_OUT: "evaluation"}


class Call(NamedTuple):
    """One network call to record."""

    step: Step
    weight: float
    """Share of this call in all calls of its timestep."""
    done: float
    """Share of the work that is done before it, 0 to 1."""
    time: int
    """Timestep under which it is recorded, the step's own unless several are recorded as one."""


def capture(
    model: RunnableModel,
    settings: CalibrationSettings | None = None,
    layers: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Follow a model's own trajectories and record the inputs of its layers.

    Parameters
    ----------
    model
        Runs with its own float weights. Where its `trajectories` take a `split`, the held-out rows come from the
        other part of its data; else from another seed.
    settings
        Samples, seed and rows to keep.
    layers
        Weight names to record; None is all. Fewer take less memory and time.
    progress
        Called with a fraction that rises to 1.0 after every network call; an exception in it stops the capture.

    Returns
    -------
    Calibration
        Identical for any thread count on one machine: linear algebra runs on one thread here.

    Raises
    ------
    ConfigurationError
        A name of `layers` is not a layer of the model.
    MetadataError
        The model's inputs are not finite, or its trajectories do not visit the same timesteps whatever the seed.

    """
    settings = settings or CalibrationSettings()
    if "linear" in _options_of(model):
        captured = _follow(model, settings, chosen_layers(model, layers), progress or _silent)
    else:
        fit_share = settings.n_samples / (settings.n_samples + settings.n_held_out)
        captured = record(
            model,
            _trajectory_calls(model, settings, FIT, 0.0, fit_share),
            _trajectory_calls(model, settings, HELD_OUT, fit_share, 1.0),
            settings,
            layers,
            progress,
        )
    return Calibration(captured, "capture", settings, model_hash(model.weights))


def _follow(
    model: RunnableModel, settings: CalibrationSettings, names: tuple[str, ...], say: Progress
) -> dict[str, LayerCapture]:
    """Record inputs while the model walks its trajectories, so that every call runs once.

    For models whose `trajectories` take the hook. A layer is learned when it is first used.
    """
    inputs = InputStatistics(settings)
    wanted = frozenset(names)
    weight = 1.0

    def observe(name: str, rows: NDArray[np.float32], time: int) -> None:
        if name in wanted:
            inputs.observe(name, time, rows, weight)

    fit_share = settings.n_samples / (settings.n_samples + settings.n_held_out)
    hook = observed_product(model, observe)
    with threadpool_limits(1, user_api="blas"):
        for which, begin, end in ((FIT, 0.0, fit_share), (HELD_OUT, fit_share, 1.0)):
            number = 0
            for count, n, start, steps in _batches(model, settings, which, hook):
                weight = count / n
                inputs.begin_call(which, number)
                for _ in steps:
                    number += 1
                    inputs.begin_call(which, number)
                    say(begin + (end - begin) * start / n)
        unused = [name for name in names if name not in inputs.names]
        if unused:
            raise _never_used(unused[0])
        found = inputs.finish()
    say(1.0)
    return {name: found[name] for name in names}


def _silent(_fraction: float) -> None:
    """Take progress and tell nobody."""


def _options_of(model: RunnableModel) -> frozenset[str]:
    """Return the arguments that a model's `trajectories` take."""
    return frozenset(inspect.signature(model.trajectories).parameters)


def _never_used(name: str) -> MetadataError:
    return MetadataError(
        f"calibration: the model never used its layer {name!r}, so there is nothing to record; leave it "
        "out of the layers"
    )


def record(
    model: RunnableModel,
    fit: Iterable[Call],
    held_out: Iterable[Call],
    settings: CalibrationSettings,
    layers: Collection[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, LayerCapture]:
    """Run calls through a model and return what its layers were given.

    Parameters
    ----------
    model, settings, layers, progress
        See `capture`.
    fit, held_out
        Calls that build the statistics, and calls that only give held-out rows; each timestep stands in both.

    """
    say = progress or _silent
    with threadpool_limits(1, user_api="blas"):
        calls = iter(fit)
        first = list(itertools.islice(calls, FIRST_LOOK))
        recorder = _Recorder(model, chosen_layers(model, layers), settings, [call.step for call in first])
        for number, call in enumerate(itertools.chain(first, calls)):
            recorder.run(call, FIT, number)
            say(call.done)
        for number, call in enumerate(held_out):
            recorder.run(call, HELD_OUT, number)
            say(call.done)
        found = recorder.finish()
    say(1.0)
    return found


def chosen_layers(model: RunnableModel, layers: Collection[str] | None) -> tuple[str, ...]:
    """Return the names to record in the model's order; an unknown one is a ConfigurationError."""
    known = model.layers()
    unknown = sorted(set(layers or ()) - set(known))
    if unknown or (layers is not None and not layers):
        raise ConfigurationError(
            f"calibration: {', '.join(map(repr, unknown[:5])) or 'an empty list'} names no layer of the model; it has "
            f"{len(known)}, such as {next(iter(known), 'none')!r}"
        )
    return tuple(name for name in known if layers is None or name in layers)


def _trajectory_calls(
    model: RunnableModel, settings: CalibrationSettings, which: int, begin: float, end: float
) -> Iterator[Call]:
    """Yield the calls of all trajectories, a batch at a time, each batch from a seed of its own."""
    for count, n, start, steps in _batches(model, settings, which):
        for step in steps:
            yield Call(step, count / n, begin + (end - begin) * start / n, step.time)


def _batches(
    model: RunnableModel, settings: CalibrationSettings, which: int, hook: Linear | None = None
) -> Iterator[tuple[int, int, int, Iterable[Step]]]:
    """Yield the trajectories in batches: how many, of how many, after how many, and their steps."""
    n = settings.n_samples if which == FIT else settings.n_held_out
    options: dict[str, Any] = {"split": _SPLITS[which]} if "split" in _options_of(model) else {}
    options |= {} if hook is None else {"linear": hook}
    for number, start in enumerate(range(0, n, settings.batch_samples)):
        count = min(settings.batch_samples, n - start)
        seed = int(np.random.SeedSequence([settings.seed, which, number]).generate_state(1)[0])
        yield count, n, start, model.trajectories(count, seed, **options)


class _Recorder:
    """The hook's side of a capture: calls of a runnable model, and the statistics of its inputs."""

    def __init__(
        self, model: RunnableModel, names: tuple[str, ...], settings: CalibrationSettings, first: list[Step]
    ) -> None:
        self._model = model
        self._names = names
        looks = [_FirstLook(model, names, step) for step in first]
        if not looks:
            raise MetadataError("calibration: the model's trajectories have no steps, so there is nothing to record")
        self._inputs = InputStatistics(settings)
        by_content: dict[tuple[bytes, ...], str] = {}
        for name in names:
            leader = by_content.setdefault(tuple(look.digests[name] for look in looks), name)
            low = min(look.ranges[name][0] for look in looks)
            high = max(look.ranges[name][1] for look in looks)
            self._inputs.expect(name, leader, looks[0].columns[name], low, high)

    def run(self, call: Call, which: int, number: int) -> None:
        """Run one call and add its inputs."""
        self._inputs.begin_call(which, number)

        def observe(name: str, rows: NDArray[np.float32], _time: int) -> None:
            if name in self._names:
                self._inputs.observe(name, call.time, rows, call.weight)

        run_observed(self._model, call.step, observe)

    def finish(self) -> dict[str, LayerCapture]:
        """Return the captures in the order of use."""
        found = self._inputs.finish()
        return {name: found[name] for name in self._names}


class _FirstLook:
    """Contents, widths and ranges of all inputs of one call."""

    def __init__(self, model: RunnableModel, names: tuple[str, ...], step: Step) -> None:
        self.digests: dict[str, bytes] = {}
        self.columns: dict[str, int] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        run_observed(model, step, self._observe)
        missing = [name for name in names if name not in self.digests]
        if missing:
            raise _never_used(missing[0])

    def _observe(self, name: str, rows: NDArray[np.float32], _time: int) -> None:
        self.digests[name] = digest_of(rows)
        self.columns[name] = rows.shape[1]
        self.ranges[name] = (float(rows.min()), float(rows.max()))


def run_observed(model: RunnableModel, step: Step, observe: Observe) -> None:
    """Run one call with the model's own weights and show the input rows of every layer; see `observed_product`."""
    model.forward(step, observed_product(model, observe))


def observed_product(model: RunnableModel, observe: Observe) -> Linear:
    """Return a hook that multiplies with the model's own weights and shows the input rows (n, columns) of every layer.

    Raises
    ------
    ShapeMismatchError
        An input's width is not that of its weight, or there are no rows.
    MetadataError
        An input holds NaN or infinity.

    """

    def linear(name: str, x: NDArray[np.float32], time: int) -> NDArray[np.float32]:
        weight = model.weights[name]
        matrix = weight.reshape(len(weight), -1)
        rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
        if rows.shape[1] != matrix.shape[1] or not len(rows):
            raise ShapeMismatchError(
                f"calibration of {name!r}: its input is {x.shape} at timestep {time}, but the weight has "
                f"{matrix.shape[1]} columns"
            )
        if not np.isfinite(rows.sum(dtype=np.float64)) and not np.isfinite(rows).all():
            raise MetadataError(f"calibration of {name!r}: its input holds NaN or infinity at timestep {time}")
        observe(name, rows, time)
        return (rows @ matrix.T).reshape(*x.shape[:-1], len(matrix))

    return linear
