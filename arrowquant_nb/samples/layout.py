"""Which tensors a `DiTTransformer2DModel` checkpoint holds, from its config.json.

It knows names, shapes and config fields; it computes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TIME_FEATURES = 256
"""Width of the sinusoidal timestep features, fixed in diffusers' CombinedTimestepLabelEmbeddings."""
REQUIRED = {
    "_class_name": "DiTTransformer2DModel",
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "attention_bias": True,
    "in_channels": 1,
    "out_channels": 1,
}


@dataclass(frozen=True)
class DiTConfig:
    """The sizes in a `DiTTransformer2DModel` config.json."""

    heads: int
    """Attention heads."""
    head_width: int
    """Channels per head; the model is heads x head_width wide."""
    n_blocks: int
    """Transformer blocks."""
    image_size: int
    """Height and width of the one-channel image in pixels."""
    patch_size: int
    """Height and width of the patch that makes a token, in pixels."""
    n_classes: int
    """Classes; label `n_classes` is the null class of classifier-free guidance."""
    norm_eps: float
    """Epsilon of the norm before the feed-forward layers."""

    @classmethod
    def from_file(cls, path: Path) -> DiTConfig:
        """Read a config.json.

        Raises
        ------
        ValueError
            The config asks for a variant that is not implemented here; the message names the field.

        """
        config = json.loads(path.read_text(encoding="utf-8"))
        for name, value in REQUIRED.items():
            if config.get(name) != value:
                raise ValueError(f"{path}: {name} is {config.get(name)!r}; this forward pass implements {value!r} only")
        return cls(
            heads=config["num_attention_heads"],
            head_width=config["attention_head_dim"],
            n_blocks=config["num_layers"],
            image_size=config["sample_size"],
            patch_size=config["patch_size"],
            n_classes=config["num_embeds_ada_norm"],
            norm_eps=config["norm_eps"],
        )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_width

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // self.patch_size

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight matrix by module name, the conditioning tables left out."""
        width, patch = self.width, self.patch_size
        shapes: dict[str, tuple[int, ...]] = {"pos_embed.proj": (width, 1, patch, patch)}
        for i in range(self.n_blocks):
            block = f"transformer_blocks.{i}"
            shapes |= {
                f"{block}.norm1.emb.timestep_embedder.linear_1": (width, TIME_FEATURES),
                f"{block}.norm1.emb.timestep_embedder.linear_2": (width, width),
                f"{block}.norm1.linear": (6 * width, width),
                f"{block}.attn1.to_q": (width, width),
                f"{block}.attn1.to_k": (width, width),
                f"{block}.attn1.to_v": (width, width),
                f"{block}.attn1.to_out.0": (width, width),
                f"{block}.ff.net.0.proj": (4 * width, width),
                f"{block}.ff.net.2": (width, 4 * width),
            }
        shapes["proj_out_1"] = (2 * width, width)
        shapes["proj_out_2"] = (patch * patch, width)
        return shapes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its checkpoint name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for module, shape in self.weight_shapes().items():
            shapes[f"{module}.weight"] = shape
            shapes[f"{module}.bias"] = shape[:1]
        for i in range(self.n_blocks):
            shapes[class_table(i)] = (self.n_classes + 1, self.width)
        return shapes


def class_table(block: int) -> str:
    """Return the checkpoint name of a block's class embedding."""
    return f"transformer_blocks.{block}.norm1.emb.class_embedder.embedding_table.weight"
