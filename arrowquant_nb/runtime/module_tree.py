"""Where quantized layers hang in a torch model."""

from __future__ import annotations

from typing import Any

from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

__all__ = ["quantized_layers", "replace_module"]


def quantized_layers(model: Any) -> dict[str, QuantizedLayer]:
    """Return the layers over codes by their path, each once."""
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def replace_module(model: Any, path: str, module: Any) -> None:
    """Hang a module in the place of the one at `path`."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
