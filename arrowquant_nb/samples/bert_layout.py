"""Which tensors a `BertForMaskedLM` checkpoint of transformers holds, from its config.json.

It knows names, shapes and config fields; it computes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = {
    "architectures": ["BertForMaskedLM"],
    "hidden_act": "gelu",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
EMBEDDINGS = "bert.embeddings"
WORDS = f"{EMBEDDINGS}.word_embeddings.weight"
"""Looked up at the input, multiplied with at the output: transformers ties the two and stores one."""
POSITIONS = f"{EMBEDDINGS}.position_embeddings.weight"
TOKEN_TYPES = f"{EMBEDDINGS}.token_type_embeddings.weight"
HEAD = "cls.predictions"


@dataclass(frozen=True)
class BertConfig:
    """The sizes in a `BertForMaskedLM` config.json."""

    n_tokens: int
    """Tokens of the vocabulary."""
    width: int
    """Channels of a token."""
    n_layers: int
    """Transformer layers."""
    heads: int
    """Attention heads."""
    ff_width: int
    """Channels between the two feed-forward products."""
    n_positions: int
    """Longest sequence."""
    n_token_types: int
    """Rows of the token type table, of which the first is used."""
    norm_eps: float
    """Epsilon of every norm."""

    @classmethod
    def from_file(cls, path: Path) -> BertConfig:
        """Read a config.json; fields that transformers leaves out at their default are taken at it.

        Raises
        ------
        ValueError
            The config asks for a variant that is not implemented here; the message names the field.

        """
        config = json.loads(path.read_text(encoding="utf-8"))
        for name, value in REQUIRED.items():
            if config.get(name, value) != value:
                raise ValueError(f"{path}: {name} is {config.get(name)!r}; this forward pass implements {value!r} only")
        return cls(
            n_tokens=config["vocab_size"],
            width=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            ff_width=config["intermediate_size"],
            n_positions=config["max_position_embeddings"],
            n_token_types=config["type_vocab_size"],
            norm_eps=config["layer_norm_eps"],
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight matrix that is multiplied with, by its tensor name, in the order of use."""
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(self.n_layers):
            layer = f"bert.encoder.layer.{i}"
            shapes |= {f"{layer}.attention.self.{part}.weight": (width, width) for part in ("query", "key", "value")}
            shapes[f"{layer}.attention.output.dense.weight"] = (width, width)
            shapes[f"{layer}.intermediate.dense.weight"] = (self.ff_width, width)
            shapes[f"{layer}.output.dense.weight"] = (width, self.ff_width)
        shapes[f"{HEAD}.transform.dense.weight"] = (width, width)
        shapes[WORDS] = (self.n_tokens, width)
        return shapes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its checkpoint name."""
        shapes = {}
        for name, shape in self.weight_shapes().items():
            shapes[name] = shape
            if name != WORDS:
                shapes[name.removesuffix("weight") + "bias"] = shape[:1]
        norms = [EMBEDDINGS, f"{HEAD}.transform"]
        for i in range(self.n_layers):
            norms += [f"bert.encoder.layer.{i}.attention.output", f"bert.encoder.layer.{i}.output"]
        for norm in norms:
            shapes[f"{norm}.LayerNorm.weight"] = shapes[f"{norm}.LayerNorm.bias"] = (self.width,)
        shapes[POSITIONS] = (self.n_positions, self.width)
        shapes[TOKEN_TYPES] = (self.n_token_types, self.width)
        shapes[f"{HEAD}.bias"] = (self.n_tokens,)
        return shapes
