"""Capture of a torch model: hooks on its layers while its own sampling loop runs, the time taken from each call.

Whoever runs the loop is not known here: a trajectory is a function that is called.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from arrowquant_nb.calibration.channel_groups import group_names
from arrowquant_nb.calibration.inputs import FIT, HELD_OUT, InputStatistics
from arrowquant_nb.calibration.torch_layers import torch_module
from arrowquant_nb.errors import MetadataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.calibration.call_time import CallTime
    from arrowquant_nb.calibration.capture import Progress
    from arrowquant_nb.calibration.scratch import Scratch
    from arrowquant_nb.calibration.statistics import CalibrationSettings, LayerCapture
    from arrowquant_nb.calibration.torch_layers import TorchLayer

    Trajectory = Callable[[], object]

SMALL_COLUMNS: Final = 2048
"""Layers up to this width gain nothing from several threads in the product of their rows."""
TINY_COLUMNS: Final = 512
"""Models up to this width gain nothing from several threads in torch, and lose much where processors are shared."""


@dataclass(frozen=True, eq=False)
class Runs:
    """What is run: trajectories that build the statistics, and others of which rows are held out."""

    fit: Sequence[Trajectory]
    """Each a function that calls the model at every timestep."""
    held_out: Sequence[Trajectory]
    """Likewise, from other inputs or other noise."""
    recorded_times: Mapping[int, int] | None = None
    """Timestep under which a timestep is recorded, where neighbouring ones are joined."""


class TorchCapture:
    """The hooks' side of a capture.

    Parameters
    ----------
    model, layers : a torch module, and those of its `torch_layers` that are recorded.
    time : reads the time of a call.
    settings, scratch, share : see `InputStatistics`.
    """

    def __init__(
        self,
        model: Any,
        layers: Mapping[str, tuple[TorchLayer, ...]],
        time: CallTime,
        settings: CalibrationSettings,
        scratch: Scratch,
        *,
        share: bool,
    ) -> None:
        self._model = model
        self._layers = layers
        self._time = time
        self._inputs = InputStatistics(settings, scratch, share=share)
        self._call: _Call | None = None
        self._split, self._number = FIT, 0
        self._times: tuple[set[int], set[int]] = (set(), set())

    def run(self, runs: Runs, progress: Progress | None = None) -> tuple[dict[str, LayerCapture], tuple[str, ...]]:
        """Run all trajectories.

        Returns
        -------
        captures, unobserved
            The captures in the order of the layers, those of channel groups under names of their own, and the layers
            that were not used at every timestep.

        Raises
        ------
        MetadataError
            The model was never called, its inputs are not finite, or held-out trajectories visit other timesteps.

        """
        # Threads of many small products would only wait for each other; and so one thread's bytes are anyone's.
        widest = max(layer.columns for layers in self._layers.values() for layer in layers)
        todo = [(FIT, run) for run in runs.fit] + [(HELD_OUT, run) for run in runs.held_out]
        with few_threads(widest), self._hooked(runs.recorded_times), torch_module().no_grad():
            for done, (split, run) in enumerate(todo):
                if split != self._split:
                    self._split, self._number = split, 0
                run()
                if progress is not None:
                    progress((done + 1) / len(todo))
        self._check_times()
        filed = {name: group_names(name, same[0].groups) for name, same in self._layers.items()}
        steady = self._inputs.names - self._inputs.unsteady()
        unobserved = {name for name, own in filed.items() if not steady.issuperset(own)}
        if unobserved == self._layers.keys():
            raise MetadataError(
                f"calibration: none of the {len(self._layers)} layers was used in every call; give layers=[...] or "
                "inputs that use the model as sampling does"
            )
        kept = [own for name, names in filed.items() if name not in unobserved for own in names]
        found = self._inputs.finish(leave_out=self._inputs.names.difference(kept))
        return {own: found[own] for own in kept}, tuple(name for name in filed if name in unobserved)

    @contextlib.contextmanager
    def _hooked(self, recorded: Mapping[int, int] | None) -> Iterator[None]:
        """Have every call of the model and of its layers observed; afterwards all is as it was."""
        model = self._model
        original, own = model.forward, vars(model).get("forward")

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._begin(args, kwargs, recorded)
            try:
                return original(*args, **kwargs)
            finally:
                self._call = None

        handles = [
            layer.module.register_forward_pre_hook(functools.partial(self._observe, layer), with_kwargs=True)
            for layers in self._layers.values()
            for layer in layers
        ]
        training = [module for module in model.modules() if module.training]
        model.eval()
        model.forward = forward
        try:
            yield
        finally:
            if own is None:
                del model.forward
            else:
                model.forward = own
            for handle in handles:
                handle.remove()
            for module in training:
                module.training = True

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], recorded: Mapping[int, int] | None) -> None:
        times, n_samples = self._time.read(args, kwargs)
        if recorded is not None:
            times = np.array([recorded.get(int(t), int(t)) for t in times])
        self._times[self._split].update(times.tolist())
        self._call = _Call(times, n_samples)
        self._inputs.begin_call(self._split, self._number)
        self._number += 1

    def _observe(self, layer: TorchLayer, _module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._call is None:  # somebody else uses a layer of this model
            return
        rows = layer.rows(args[0] if args else next(iter(kwargs.values())))
        for time, part, weight in self._call.parts(layer.name, rows):
            for name, own in layer.by_group(part):
                self._inputs.observe(name, time, own, weight)

    def _check_times(self) -> None:
        fit, held_out = self._times
        if not fit:
            raise MetadataError(
                f"calibration: {type(self._model).__name__} was never called; give inputs that run this model, or "
                "name another component"
            )
        if fit != held_out:
            odd = sorted(fit ^ held_out)
            raise MetadataError(
                f"calibration: fit and held-out trajectories do not visit the same timesteps, such as {odd[:5]}; every "
                "trajectory needs the same number of steps and the same size of its samples"
            )


@contextlib.contextmanager
def few_threads(columns: int) -> Iterator[None]:
    """Have one thread multiply where the widest layer has so few columns that several would wait for each other."""
    torch = torch_module()
    before = torch.get_num_threads()
    with threadpool_limits(1, user_api="blas") if columns <= SMALL_COLUMNS else contextlib.nullcontext():
        if columns <= TINY_COLUMNS:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of the model."""

    times: NDArray[np.int64]
    """One timestep, or one per sample."""
    n_samples: int
    """Samples of its batch, both guidance branches counted."""

    def parts(self, name: str, rows: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32], float]]:
        """Yield timestep, rows and weight of the samples that are at the same timestep."""
        if len(self.times) == 1:
            yield int(self.times[0]), rows, float(self.n_samples)
            return
        n = len(self.times)
        if len(rows) % n:
            raise MetadataError(
                f"calibration of {name!r}: its {len(rows)} input rows cannot be divided among {n} samples at different "
                "timesteps; call the model with one timestep per batch"
            )
        samples = rows.reshape(n, -1, rows.shape[1])
        for time in np.unique(self.times):
            chosen = self.times == time
            yield int(time), samples[chosen].reshape(-1, rows.shape[1]), float(chosen.sum())
