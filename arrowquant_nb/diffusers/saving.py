"""A model whose layers were swapped becomes one that `save_pretrained` writes with its codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from transformers import PreTrainedModel

from arrowquant_nb.diffusers import diffusers_backend, transformers_backend

if TYPE_CHECKING:
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["let_save"]


def let_save(model: Any, folder: QuantizedModel) -> None:
    """Make the layers that come from an open model folder known to the library of a model, if it has one."""
    if isinstance(model, ModelMixin):
        diffusers_backend.attach(model, folder)
    elif isinstance(model, PreTrainedModel):
        transformers_backend.attach(model, folder)
