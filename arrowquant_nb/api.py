"""The public entry: `ArrowQuantV2` and `build_info`; single arrays and bundled samples have modules of their own.

Everything here is interpreted, so that `?`, tab completion and pickling work; the work is done below.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from arrowquant_nb import _kernels
from arrowquant_nb.arrays import quantize_tensor
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.core import orchestrator as core_orchestrator
from arrowquant_nb.diffusion_orchestrator import DiffusionOrchestrator
from arrowquant_nb.runs import forecasting, record, validation
from arrowquant_nb.runs.dequantization import dequantize_model
from arrowquant_nb.runs.model_choice import ModelChoice
from arrowquant_nb.runs.reproduction import reproduce
from arrowquant_nb.sample_quality import evaluate_sample, quantized_sample
from arrowquant_nb.storage.checkpoint import open_checkpoint
from arrowquant_nb.storage.quantized import open_quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from arrowquant_nb.comparisons import ValidationReport
    from arrowquant_nb.events import Event
    from arrowquant_nb.forecasts import Forecast
    from arrowquant_nb.results import Plan, QuantizationResult
    from arrowquant_nb.runs.size_budget import SizeBudget

__all__ = [
    "ArrowQuantV2",
    "DiffusionOrchestrator",
    "build_info",
    "dequantize_model",
    "evaluate_sample",
    "open_checkpoint",
    "open_quantized",
    "quantize_tensor",
    "quantized_sample",
    "reproduce",
]


class ArrowQuantV2:
    """Quantize diffusion models, look at what will happen first, and check what came out.

    Parameters
    ----------
    config : settings for every call that does not bring its own; default the local profile.

    Examples
    --------
    >>> quantizer = ArrowQuantV2(DiffusionQuantConfig.from_profile("local"))
    >>> plan = quantizer.plan("digits-dit")
    >>> plan.modality
    'image'
    """

    def __init__(self, config: DiffusionQuantConfig | None = None) -> None:
        self.config = config if config is not None else DiffusionQuantConfig()
        self._running: set[threading.Event] = set()

    def cancel(self) -> None:
        """Ask every running call of this object to stop, from any thread; their outputs stay resumable."""
        for stop in list(self._running):
            stop.set()

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[threading.Event]:
        stop = threading.Event()
        self._running.add(stop)
        try:
            yield stop
        finally:
            self._running.discard(stop)

    def quantize_diffusion_model(
        self,
        model_path: str | Path,
        output_path: str | Path,
        config: DiffusionQuantConfig | None = None,
        progress_callback: Callable[[str, float], None] | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        requantize: bool = False,
        component: str | None = None,
        variant: str | None = None,
        overwrite: bool = False,
        calibration: str | Path | None = None,
    ) -> QuantizationResult:
        """Quantize a model, layer by layer, into a Parquet model folder.

        Parameters
        ----------
        model_path : a diffusers pipeline or component folder, a transformers LM folder, one safetensors file, a float
            model folder of ours, or the name of a bundled sample.
        output_path : folder for the model: new, empty, or of an earlier run over the same model, which is resumed:
            layers whose weights and settings are unchanged are taken over, the others are done again in place.
        config : settings for this call.
        progress_callback : called with (message, fraction), fraction rising from 0.0 to exactly 1.0; an exception in
            it stops the run cleanly and is re-raised.
        on_event : called with every event of `arrowquant_nb.events` on this thread.
        requantize : allow a source that is quantized already.
        component, variant : which part of a pipeline, and which variant of its files; default the denoiser, plain.
        overwrite : replace a finished model of another source that stands in `output_path`.
        calibration : a calibration file, or "none" to go without. By default `calibration.{jsonl,parquet,arrow}` beside
            the model is taken, else a bundled sample is run along its own trajectories, else there is none.

        Returns
        -------
        QuantizationResult
            What was stored, what it cost, and why.

        Raises
        ------
        QuantizationError
            Layers failed at every width (each is named with its figures), or the run was cancelled.
        ConfigurationError, ModelNotFoundError, MetadataError, CheckpointError, OutputError
            Settings, model, its JSON files, its weights, or the output folder cannot be used.
        """
        with self._stoppable() as stop:
            return DiffusionOrchestrator(config or self.config).quantize_model(
                model_path, output_path, progress_callback, on_event=on_event, stop=stop, requantize=requantize,
                component=component, variant=variant, overwrite=overwrite, calibration=calibration,
            )  # fmt: skip

    def plan(
        self,
        model_path: str | Path,
        config: DiffusionQuantConfig | None = None,
        *,
        requantize: bool = False,
        component: str | None = None,
        variant: str | None = None,
        calibration: str | Path | None = None,
    ) -> Plan:
        """Say what a run would do, from headers alone: per tensor its width, reason and exact payload size.

        Under a size limit the widths are provisional: the run measures the layers first, as `forecast` does.
        """
        return DiffusionOrchestrator(config or self.config).plan(
            model_path, requantize=requantize, component=component, variant=variant, calibration=calibration
        )

    def forecast(
        self,
        model_path: str | Path,
        config: DiffusionQuantConfig | None = None,
        progress_callback: Callable[[str, float], None] | None = None,
        *,
        requantize: bool = False,
        component: str | None = None,
        variant: str | None = None,
        calibration: str | Path | None = None,
    ) -> Forecast:
        """Say in seconds what a run would store and lose: payload and signal over error, each with its interval.

        A sample of every layer's rows is quantized in all widths and group sizes that the layer may get, with
        calibration where it is at hand or the model can be run (a few trajectories). A bundled model is also run with
        one layer at a time quantized, which gives the signal over error of the network's output. What was measured is
        kept for the next call. Other arguments are those of `quantize_diffusion_model`.
        """
        choice = ModelChoice(model_path, component, variant, requantize, calibration)
        return forecasting.forecast_model(choice, config or self.config, _measuring(progress_callback))

    def budget(
        self,
        model_path: str | Path,
        config: DiffusionQuantConfig | None = None,
        progress_callback: Callable[[str, float], None] | None = None,
        *,
        requantize: bool = False,
        component: str | None = None,
        variant: str | None = None,
        calibration: str | Path | None = None,
    ) -> SizeBudget:
        """Measure a model as `forecast` does and return what solves any size limit in milliseconds.

        `budget.solve(target_mb)` gives the width and group size of every layer with the least error at the network's
        output whose payload is at most the target; a run with `target_model_size_mb` takes the same.
        """
        choice = ModelChoice(model_path, component, variant, requantize, calibration)
        return forecasting.budget_model(choice, config or self.config, _measuring(progress_callback))

    def validate_quality(
        self,
        original: str | Path,
        quantized: str | Path,
        progress_callback: Callable[[str, float], None] | None = None,
        *,
        n_samples: int = 0,
    ) -> ValidationReport:
        """Compare every tensor of a quantized model with its original; a missing or extra one is a failure.

        Kept tensors must be bit-exact; quantized ones must be of the very weights of the original (by hash) and have
        the error that the model records of them. With `n_samples` a bundled sample is run as well, with the inputs of
        its layers rounded as the model says, and `.network` has what `evaluate_sample` measures; it is no verdict.

        Raises
        ------
        ModelNotFoundError
            `n_samples` is set and `original` is no bundled sample.
        """
        name = validation.sample_name(original) if n_samples else ""
        report = validation.validate_quality(original, quantized, progress_callback)
        return (
            replace(report, network=evaluate_sample(name, quantized, n_samples)) if name and report.passed else report
        )

    async def quantize_diffusion_model_async(
        self, model_path: str | Path, output_path: str | Path, config: DiffusionQuantConfig | None = None,
        progress_callback: Callable[[str, float], None] | None = None, **options: Any,
    ) -> QuantizationResult:  # fmt: skip
        """Do as `quantize_diffusion_model` in a worker thread; cancelling the task stops the run, resumably."""
        orchestrator = DiffusionOrchestrator(config or self.config)
        with self._stoppable() as stop:
            run = functools.partial(orchestrator.quantize_model, stop=stop, **options)
            work = asyncio.ensure_future(asyncio.to_thread(run, model_path, output_path, progress_callback))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                stop.set()
                await asyncio.wait([work])
                if not work.cancelled():
                    work.exception()  # retrieved: the caller asked for the cancellation
                raise

    async def plan_async(
        self, model_path: str | Path, config: DiffusionQuantConfig | None = None, **options: Any
    ) -> Plan:
        """Do as `plan` in a worker thread."""
        return await asyncio.to_thread(functools.partial(self.plan, **options), model_path, config)

    async def forecast_async(
        self, model_path: str | Path, config: DiffusionQuantConfig | None = None, **options: Any
    ) -> Forecast:
        """Do as `forecast` in a worker thread."""
        return await asyncio.to_thread(functools.partial(self.forecast, **options), model_path, config)

    async def budget_async(
        self, model_path: str | Path, config: DiffusionQuantConfig | None = None, **options: Any
    ) -> SizeBudget:
        """Do as `budget` in a worker thread."""
        return await asyncio.to_thread(functools.partial(self.budget, **options), model_path, config)

    async def validate_quality_async(self, original: str | Path, quantized: str | Path) -> ValidationReport:
        """Do as `validate_quality` in a worker thread."""
        return await asyncio.to_thread(self.validate_quality, original, quantized)


def _measuring(callback: Callable[[str, float], None] | None) -> Callable[[float], None]:
    """Turn a progress callback of ours into one that takes fractions."""

    def tell(fraction: float) -> None:
        if callback is not None:
            callback("measuring layers", fraction)

    return tell


def build_info() -> dict[str, Any]:
    """Say what is loaded: versions, compiled or not, instruction set, threads."""
    core_file = str(core_orchestrator.__file__)
    return {
        "version": record.versions()["arrowquant_nb"],
        "compiled_core": core_file.endswith((".so", ".pyd")),
        "compiled_kernels": _kernels.COMPILED,
        "isa": _kernels.active_isa(),
        "available_isas": _kernels.available_isas(),
        "n_threads": _kernels.resolve_threads(0),
        "versions": record.versions(),
    }
