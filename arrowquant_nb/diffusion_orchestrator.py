"""The steps of a run, one by one: the interpreted face of the compiled loop, with documentation and `?`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.config import DiffusionQuantConfig, Modality, given_or_default
from arrowquant_nb.core import gates
from arrowquant_nb.core import orchestrator as core_orchestrator
from arrowquant_nb.core.task import LayerTask
from arrowquant_nb.errors import ConfigurationError, QuantizationError
from arrowquant_nb.quantizers.layout import matrix_shape
from arrowquant_nb.runs import header_plan, planning, quantization
from arrowquant_nb.runs.control import Progress
from arrowquant_nb.runs.model_choice import ModelChoice

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.core.task import Control, Sink, Source
    from arrowquant_nb.events import Event
    from arrowquant_nb.layer_reports import AttemptReport, LayerReport
    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.results import Plan, QuantizationResult, Strategy


class DiffusionOrchestrator:
    """The steps of a run, one by one; `ArrowQuantV2` calls them in order.

    Parameters
    ----------
    config : settings; default the local profile.

    Notes
    -----
    The loop itself is `arrowquant_nb.core.orchestrator`, compiled by mypyc; this face is interpreted.
    """

    def __init__(self, config: DiffusionQuantConfig | None = None) -> None:
        self.config = given_or_default(config)

    def detect_modality(self, model_path: str | Path, **options: Any) -> tuple[Modality, str]:
        """Return the modality of a model and the reason, from the config or the model's files; never a silent guess.

        Options are `component` and `variant`, as in `plan`.

        Raises
        ------
        MetadataError
            Nothing says what it is; the message lists what was looked at and the override to use.
        """
        plan = self.plan(model_path, requantize=True, **options)
        return Modality(plan.modality), plan.modality_reason

    def plan(self, model_path: str | Path, **options: Any) -> Plan:
        """Say what a run would do; see `ArrowQuantV2.plan`."""
        return header_plan.plan_model(ModelChoice(model_path, **options), self.config)

    def select_strategy(self, modality: Modality | str, has_calibration: bool = False) -> Strategy:
        """Return preferred and used method for a modality under this config, with the reason."""
        if str(modality) not in list(Modality):
            raise ConfigurationError(f"modality {str(modality)!r} is not one of {', '.join(Modality)}")
        choice = planning.choose_strategy(str(modality), self.config, has_calibration, "")
        return planning.public_strategy(choice, self.config, has_calibration)

    def quantize_layers(
        self, tasks: list[LayerTask], source: Source, sink: Sink, control: Control
    ) -> list[LayerReport]:
        """Run the loop over given tasks; see `arrowquant_nb.core.orchestrator.quantize_layers`."""
        return core_orchestrator.quantize_layers(tasks, source, sink, control)

    def fallback_quantization(
        self, weight: NDArray[Any], bit_width: int | None = None, name: str = "tensor"
    ) -> tuple[QuantizedTensor, tuple[AttemptReport, ...]]:
        """Quantize one array through the chain INT2 -> INT4 -> INT8 until its gate passes.

        Parameters
        ----------
        weight : array, shape [O, ...], float32, float16 or bfloat16.
        bit_width : width to begin with; default the config's.
        name : for messages.

        Returns
        -------
        tensor, attempts
            The accepted tensor, and every attempt with its figures and verdict.

        Raises
        ------
        QuantizationError
            No width passes; the message holds the figures of each.
        """
        requested = self.config.bit_width if bit_width is None else bit_width
        if requested not in gates.BIT_WIDTHS:
            raise ConfigurationError(f"bit_width {requested!r} is not one of {', '.join(map(str, gates.BIT_WIDTHS))}")
        if not isinstance(weight, np.ndarray):
            raise TypeError(f"{name}: expected a NumPy array, got {type(weight).__name__}")
        config = self.config
        matrix = np.ascontiguousarray(weight).reshape(matrix_shape(weight.shape))
        methods = list(planning.choose_strategy(str(config.modality or Modality.IMAGE), config, False, "").methods)
        task = LayerTask(
            0, name, weight.shape, str(weight.dtype), *matrix.shape, weight.nbytes, requested, config.group_size,
            methods, config.gain_correction, config.min_accuracy, "array", "given", "argument",
            rotation=str(config.rotation), seed=config.seed, low_rank=config.low_rank,
            scale_format=str(config.scale_format),
        )  # fmt: skip
        attempts: list[AttemptReport] = []
        for bits in gates.fallback_chain(requested):
            tensor, attempt = core_orchestrator.attempt_array(task, matrix, bits, config.num_threads)
            attempts.append(attempt)
            if attempt.passed:
                return replace(tensor, shape=weight.shape), tuple(attempts)
        raise QuantizationError(f"{name!r} failed at every bit width: " + " ".join(a.sentence for a in attempts))

    def quantize_model(
        self,
        model_path: str | Path,
        output_path: str | Path,
        progress_callback: Callable[[str, float], None] | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        stop: threading.Event | None = None,
        newer_settings: Callable[[], DiffusionQuantConfig | None] = lambda: None,
        requantize: bool = False,
        component: str | None = None,
        variant: str | None = None,
        overwrite: bool = False,
        calibration: str | Path | None = None,
    ) -> QuantizationResult:
        """Quantize a whole model; see `ArrowQuantV2.quantize_diffusion_model`.

        `newer_settings` is asked between any two batches of layers for what the user orders of single layers
        (`layer_bit_widths`, `layer_methods`) while the run goes on; nothing else of it is taken. Runs that choose
        widths by measuring (`target_model_size_mb`, `skip_sensitive_layers`) do not ask: there one layer moves others.
        """
        listeners: list[Callable[[Event], None]] = []
        if on_event is not None:
            listeners.append(on_event)
        if progress_callback is not None:
            listeners.append(Progress(progress_callback))
        choice = ModelChoice(model_path, component, variant, requantize, calibration)
        return quantization.quantize_model(
            choice, output_path, self.config, listeners=listeners, stop=stop, newer_settings=newer_settings,
            overwrite=overwrite,
        )  # fmt: skip
