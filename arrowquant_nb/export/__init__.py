"""Exports: a quantized model in the formats that other tools load.

    safetensors          floats in the source's layout; every tool reads it
    diffusers            the folder that diffusers loads with our backend: packed codes
    gguf                 one file of GGUF blocks
    comfy                one safetensors file of ComfyUI's int8_tensorwise or convrot_w4a4
    compressed-tensors   a folder that transformers and vLLM load, for language models

Every export returns an `ExportReport`: what each tensor became, what was rounded again, what the target cannot hold.
An output is there whole or not at all. Each target is one module; none knows another.
"""

from arrowquant_nb.export.exporting import TARGETS, export_model
from arrowquant_nb.export.report import ExportReport, TensorExport

__all__ = ["TARGETS", "ExportReport", "TensorExport", "export_model"]
