"""Quantize diffusion models to INT2/INT4/INT8 in a notebook, with every figure measured.

    import arrowquant_nb as aq

    quantizer = aq.ArrowQuantV2(aq.DiffusionQuantConfig.from_profile("local"))
    print(quantizer.plan("digits-dit"))
    result = quantizer.quantize_diffusion_model("digits-dit", "digits-int4")
    weight = aq.open_quantized("digits-int4").dequantize("proj_out_2.weight")

The house, top to bottom; a room imports only what stands below it:

    cli            the `arrowquant` command
    ui             what a notebook shows: forms, live dashboard, figures (ipywidgets, plotly)
    diffusers      the backend of diffusers and transformers, `quantize_pipeline` (torch)
    api arrays     ArrowQuantV2, DiffusionOrchestrator, functions on folders, arrays and bundled samples
    runtime        a quantized model in torch: modules over packed codes
    export         a quantized model in the formats that other tools load
    runs           one run: joins storage, calibration and core
    core           decisions and the loop (mypyc)   |   storage     files: checkpoints in, Parquet V2 Extended out
                                                    |   calibration what layers are given while a model denoises
    quantizers     arrays in, packed codes and measured error out
    _kernels       Cython and C, or NumPy; equal bytes
    samples        small trained diffusion models (a leaf)
    config events results layer_reports forecasts result_card run_source tables errors fsync arrow_files
                   plain values that every room may use, and their words
"""

from contextlib import suppress as _suppress
from importlib import import_module
from sys import modules as _modules
from typing import TYPE_CHECKING, Any

from arrowquant_nb.errors import (
    ArrowQuantError,
    CheckpointError,
    ConfigurationError,
    MetadataError,
    ModelNotFoundError,
    OutputError,
    QuantizationError,
    ShapeMismatchError,
    ValidationError,
)

if TYPE_CHECKING:
    from arrowquant_nb import samples
    from arrowquant_nb.api import (
        ArrowQuantV2,
        build_info,
        dequantize_model,
        open_checkpoint,
        open_quantized,
        reproduce,
    )
    from arrowquant_nb.arrays import quantize_tensor
    from arrowquant_nb.comparisons import ReproductionReport, ValidationReport
    from arrowquant_nb.concurrent_runs import quantize_async
    from arrowquant_nb.config import DeploymentProfile, DiffusionQuantConfig, Modality, QuantMethod
    from arrowquant_nb.diffusion_orchestrator import DiffusionOrchestrator
    from arrowquant_nb.export import ExportReport, export_model
    from arrowquant_nb.export.folder_reader import open_exported
    from arrowquant_nb.forecasts import Forecast, SizeAllocation
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.quantizers.spatial import SpatialQuantizer
    from arrowquant_nb.quantizers.spatial_metadata import SpatialQuantMetadata
    from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor
    from arrowquant_nb.quantizers.time_aware import TimeAwareQuantizer
    from arrowquant_nb.quantizers.time_tables import TimeAwareQuantMetadata, TimeGroupParams
    from arrowquant_nb.results import Plan, QuantizationResult
    from arrowquant_nb.results import Strategy as QuantizationStrategy
    from arrowquant_nb.runs.model_calibration import calibrate
    from arrowquant_nb.runs.size_budget import SizeBudget
    from arrowquant_nb.runtime import (
        QuantizedConv2d,
        QuantizedLinear,
        dequantize_state_dict,
        follow_time,
        time_context,
    )
    from arrowquant_nb.sample_quality import evaluate_sample, quantized_sample
    from arrowquant_nb.storage.parquet_reader import ParquetV2Extended
    from arrowquant_nb.storage.quantized import QuantizedModel
    from arrowquant_nb.torch_models import load_quantized
    from arrowquant_nb.ui.compare import compare
    from arrowquant_nb.ui.replayed_run import dashboard
    from arrowquant_nb.ui.report import report
    from arrowquant_nb.ui.studio_cell import studio

__version__ = "0.1.0"

# Loaded on first use, so that `import arrowquant_nb` stays quick.
_HOMES = {
    "ArrowQuantV2": "api",
    "DiffusionOrchestrator": "diffusion_orchestrator",
    "build_info": "api",
    "compare": "ui.compare",
    "calibrate": "runs.model_calibration",
    "dashboard": "ui.replayed_run",
    "studio": "ui.studio_cell",
    "dequantize_model": "api",
    "evaluate_sample": "sample_quality",
    "export_model": "export",
    "open_exported": "export.folder_reader",
    "ExportReport": "export",
    "open_checkpoint": "api",
    "open_quantized": "api",
    "quantize_async": "concurrent_runs",
    "quantize_tensor": "arrays",
    "quantized_sample": "sample_quality",
    "report": "ui.report",
    "reproduce": "api",
    "DeploymentProfile": "config",
    "DiffusionQuantConfig": "config",
    "Modality": "config",
    "QuantMethod": "config",
    "LayerStatistics": "quantizers.tensor",
    "QuantizedTensor": "quantizers.tensor",
    "SpatialQuantMetadata": "quantizers.spatial_metadata",
    "SpatialQuantizer": "quantizers.spatial",
    "TimeAwareQuantMetadata": "quantizers.time_tables",
    "TimeAwareQuantizer": "quantizers.time_aware",
    "TimeGroupParams": "quantizers.time_tables",
    "QuantizedConv2d": "runtime",
    "QuantizedLinear": "runtime",
    "dequantize_state_dict": "runtime",
    "follow_time": "runtime",
    "load_quantized": "torch_models",
    "time_context": "runtime",
    "Forecast": "forecasts",
    "LayerReport": "layer_reports",
    "Plan": "results",
    "QuantizationResult": "results",
    "QuantizationStrategy": "results",
    "ReproductionReport": "comparisons",
    "ValidationReport": "comparisons",
    "ParquetV2Extended": "storage.parquet_reader",
    "QuantizedModel": "storage.quantized",
    "SizeAllocation": "forecasts",
    "SizeBudget": "runs.size_budget",
}
_NAMES_AT_HOME = {"QuantizationStrategy": "Strategy"}

__all__ = [
    "ArrowQuantError",
    "ArrowQuantV2",
    "CheckpointError",
    "ConfigurationError",
    "DeploymentProfile",
    "DiffusionOrchestrator",
    "DiffusionQuantConfig",
    "ExportReport",
    "Forecast",
    "LayerReport",
    "LayerStatistics",
    "MetadataError",
    "Modality",
    "ModelNotFoundError",
    "OutputError",
    "ParquetV2Extended",
    "Plan",
    "QuantMethod",
    "QuantizationError",
    "QuantizationResult",
    "QuantizationStrategy",
    "QuantizedConv2d",
    "QuantizedLinear",
    "QuantizedModel",
    "QuantizedTensor",
    "ReproductionReport",
    "ShapeMismatchError",
    "SizeAllocation",
    "SizeBudget",
    "SpatialQuantMetadata",
    "SpatialQuantizer",
    "TimeAwareQuantMetadata",
    "TimeAwareQuantizer",
    "TimeGroupParams",
    "ValidationError",
    "ValidationReport",
    "build_info",
    "calibrate",
    "compare",
    "dashboard",
    "dequantize_model",
    "dequantize_state_dict",
    "evaluate_sample",
    "export_model",
    "follow_time",
    "load_quantized",
    "open_checkpoint",
    "open_exported",
    "open_quantized",
    "quantize_async",
    "quantize_tensor",
    "quantized_sample",
    "report",
    "reproduce",
    "samples",
    "studio",
    "time_context",
]


def __getattr__(name: str) -> Any:
    if name == "samples":
        return import_module("arrowquant_nb.samples")
    if name not in _HOMES:
        raise AttributeError(f"module 'arrowquant_nb' has no attribute {name!r}")
    value = getattr(import_module(f"arrowquant_nb.{_HOMES[name]}"), _NAMES_AT_HOME.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


# Whoever works with diffusers already can load our folders at once; importing it for everybody would take seconds.
if "diffusers" in _modules:
    with _suppress(ImportError):  # `import arrowquant_nb.diffusers` says what is missing
        import_module("arrowquant_nb.diffusers")
