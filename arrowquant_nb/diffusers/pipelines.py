"""`quantize_pipeline`: calibrate a pipeline, quantize one of its models and put the quantized layers in its place.

The same run as from files, with all its gates and reports: the model is saved to a temporary folder and quantized
there. What comes out is the pipeline itself, which can be called, saved and loaded like any other.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from arrowquant_nb.calibration.torch_capture import few_threads
from arrowquant_nb.calibration.torch_layers import torch_layers
from arrowquant_nb.calibration.torch_runs import component_of, is_pipeline, listed, pipeline_call
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.diffusers.saving import let_save
from arrowquant_nb.diffusion_orchestrator import DiffusionOrchestrator
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.runs.model_calibration import calibrate
from arrowquant_nb.runtime.loading import load_into
from arrowquant_nb.storage.quantized import open_privately

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from arrowquant_nb.results import QuantizationResult

__all__ = ["PipelineQuantization", "quantize_pipeline"]

COMPARED: Final = 4
"""Samples that are drawn before and after, at most."""


@dataclass(frozen=True)
class PipelineQuantization:
    """What became of a pipeline."""

    result: QuantizationResult
    """The run, layer by layer."""
    component: str
    """Which of its models was quantized; "" for a model that is no pipeline's."""
    sample_psnr_db: float | None
    """Median peak signal over error power of samples drawn before and after from the same noise, in dB; inf when at
    least half of them do not differ. None where nothing was drawn."""
    n_compared: int
    """Samples drawn."""

    def __str__(self) -> str:
        layers = [report for report in self.result.layers if report.action == "quantized"]
        drawn = "no samples drawn"
        if self.sample_psnr_db is not None:
            drawn = f"PSNR {self.sample_psnr_db:.1f} dB over {self.n_compared} samples from the same noise"
        return (
            f"{self.component or 'model'}: {len(layers)} of {len(self.result.layers)} tensors quantized to "
            f"{self.result.bits_per_weight:.2f} bits per weight; {drawn}"
        )


def quantize_pipeline(
    pipeline: Any,
    config: DiffusionQuantConfig | None = None,
    inputs: Any = None,
    steps: int = 25,
    *,
    component: str | None = None,
    calibration: str | Path | None = None,
    output: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    progress_callback: Callable[[str, float], None] | None = None,
    **calibrating: Any,
) -> PipelineQuantization:
    """Quantize a diffusers pipeline, or one model of diffusers or transformers, in place.

    Parameters
    ----------
    pipeline : a pipeline, or a model with `save_pretrained`.
    config : settings; default the local profile.
    inputs : what the pipeline is run on to calibrate it, see `arrowquant_nb.calibrate`; None goes without, unless
        `calibration` is given. The last four of a pipeline's are drawn before and after, too.
    steps : sampling steps.
    component : of a pipeline; default the one that denoises.
    calibration : a file of `calibrate`, instead of `inputs`.
    output : keep the master copy, a Parquet model folder, here; by default none is kept, and the result's
        `quantized_path` is None.
    options : further arguments of every call of the pipeline, such as height and width.
    progress_callback : see `quantize_diffusion_model`.
    calibrating : further arguments of `calibrate`: seed, n_samples, tokenizer, mask_token_id, time_range, ...

    Returns
    -------
    PipelineQuantization
        The run and what it cost at the pipeline's output.

    Raises
    ------
    QuantizationError
        Layers failed at every width; the pipeline is as it was.
    ConfigurationError, MetadataError, CheckpointError, OutputError
        Settings, inputs or weights cannot be used; the pipeline is as it was.

    Examples
    --------
    ::

        report = quantize_pipeline(pipe, DiffusionQuantConfig(bit_width=4), ["a red fox", "two cups of tea"], steps=20)
        pipe.save_pretrained("pipe-int4")
    """
    config = config or DiffusionQuantConfig()
    whole = is_pipeline(pipeline)
    model = component_of(pipeline, component) if whole else pipeline
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "save_pretrained"):
        raise ConfigurationError(f"{type(model).__name__} is no pipeline and no model of diffusers or transformers")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigurationError(
            f"{type(model).__name__} has weights on the meta device, without values: load them, or take the pipeline's "
            "offloading back (remove_all_hooks()) and turn it on again when it is quantized"
        )
    name = next(k for k, m in pipeline.components.items() if m is model) if whole else ""
    widest = max((layer.columns for same in torch_layers(model).values() for layer in same), default=0)
    drawn = None
    if whole and inputs is not None and not callable(inputs):
        with few_threads(widest):
            drawn = _drawn(pipeline, inputs, steps, options)
    with tempfile.TemporaryDirectory(prefix="arrowquant-") as scratch:
        source = _saved(model, pipeline if whole else None, name, Path(scratch))
        if inputs is not None and calibration is None:
            calibration = Path(scratch) / "calibration.parquet"
            calibrate(
                pipeline, inputs, steps,
                output=calibration, config=config, component=component, options=options, **calibrating,
            )  # fmt: skip
        folder = Path(output) if output is not None else Path(scratch) / "quantized"
        result = DiffusionOrchestrator(config).quantize_model(
            source, folder, progress_callback, calibration=calibration or "none"
        )
        with open_privately(folder) as opened:
            load_into(model, opened, mask_token_id=calibrating.get("mask_token_id"))
            let_save(model, opened)
    if output is None:
        result = replace(result, quantized_path=None)
    if drawn is None:
        return PipelineQuantization(result, name, None, 0)
    with few_threads(widest):
        again = _drawn(pipeline, inputs, steps, options)
    return PipelineQuantization(result, name, _psnr_db(drawn, again), len(drawn))


def _saved(model: Any, pipeline: Any, name: str, scratch: Path) -> Path:
    """Save a model, with the class of its pipeline beside it, from which the modality is seen."""
    folder = scratch / "source" / (name or "model")
    model.save_pretrained(folder)
    if pipeline is not None:
        index = {"_class_name": type(pipeline).__name__, name: ["diffusers", type(model).__name__]}
        (folder.parent / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _drawn(pipeline: Any, inputs: Any, steps: int, options: Mapping[str, Any] | None) -> list[np.ndarray[Any, Any]]:
    """Return samples of the last inputs, which are held out where there are several, each from a seed of its own."""
    samples = []
    for seed, entry in enumerate(listed(inputs)[-COMPARED:]):
        found = pipeline_call(pipeline, entry, steps, seed, {"output_type": "np", **(options or {})})
        values = next(iter(found.values())) if hasattr(found, "values") else found[0]
        samples.append(np.asarray(values, np.float64))
    return samples


def _psnr_db(before: list[np.ndarray[Any, Any]], after: list[np.ndarray[Any, Any]]) -> float:
    """Return the median PSNR in dB; the peak is the range of all samples drawn before."""
    peak = max(x.max() for x in before) - min(x.min() for x in before)
    error = float(np.median([((a - b) ** 2).mean() for a, b in zip(before, after, strict=True)]))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))
