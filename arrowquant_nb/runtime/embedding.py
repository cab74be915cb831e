"""A table of embeddings over stored codes: the rows that are looked up are decoded, the table never is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

if TYPE_CHECKING:
    from arrowquant_nb.export.folder_settings import FolderLayer
    from arrowquant_nb.runtime.input_format import InputFormat

__all__ = ["QuantizedEmbedding"]


class QuantizedEmbedding(QuantizedLayer):
    """Rows by their number; takes the place of `torch.nn.Embedding`, such as a language model's vocabulary.

    An output layer that is tied to the table shares its codes; `inputs` is noted for that layer.
    """

    def __init__(
        self,
        form: FolderLayer,
        inputs: InputFormat | None = None,
        *,
        padding_idx: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(form, inputs, **{**settings, "bias": False})
        if len(form.shape) != 2:
            raise ShapeMismatchError(f"{self.name}: a weight of shape {form.shape} is no table of embeddings")
        self.num_embeddings, self.embedding_dim = form.shape
        self.padding_idx = padding_idx

    def float_form(self) -> tuple[type[torch.nn.Module], dict[str, Any]]:
        """Return `torch.nn.Embedding` and its sizes."""
        sizes = {"num_embeddings": self.num_embeddings, "embedding_dim": self.embedding_dim}
        return torch.nn.Embedding, {**sizes, "padding_idx": self.padding_idx}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows, (..., embedding_dim) in the dtype of the table, for integers (...)."""
        wanted = ids.reshape(-1)
        if wanted.device.type == "cpu" and wanted.numel() and not torch.compiler.is_compiling():
            low, high = int(wanted.min()), int(wanted.max())
            if low < 0 or high >= self.num_embeddings:
                raise ShapeMismatchError(
                    f"{self.name}: rows {low}..{high} are asked of a table of {self.num_embeddings}: the ids are of "
                    "another tokenizer"
                )
        return self.weight.rows(wanted).reshape(*ids.shape, self.embedding_dim)
