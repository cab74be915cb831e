"""diffusers' `DiTTransformer2DModel` (Peebles and Xie 2023) as a float32 NumPy forward pass, and its guided sampler.

It reads a diffusers component folder and implements `RunnableModel`: every product with a weight matrix goes through
one hook, so the same code runs trained and quantized weights. It needs no torch and knows nothing of quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from .ddim import DDIM
from .layout import TIME_FEATURES, DiTConfig, class_table
from .numerics import attend, layer_norm, silu, tanh_gelu
from .runnable import CALIBRATION, GUIDANCE, STEPS, Step
from .tensors import checked_weights, own_product, stored_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from .runnable import Linear, Split

    Product: TypeAlias = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
ADA_NORM_EPS = 1e-6
"""Epsilon of AdaLayerNormZero and of the last norm, fixed in diffusers."""


def time_features(time: int) -> NDArray[np.float32]:
    """Return diffusers' sinusoidal features of a timestep: (1, 256), cosines first."""
    half = TIME_FEATURES // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -math.log(10000) / (half - 1))
    angles = np.float32(time) * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)])[None]


def position_features(grid: int, width: int) -> NDArray[np.float32]:
    """Return diffusers' sine-cosine positions, counted in patches: (grid * grid, width), column first."""
    quarter = width // 4
    angles = np.arange(grid)[:, None] / 10000 ** (np.arange(quarter) / quarter)
    along = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, rows = np.tile(along, (grid, 1)), np.repeat(along, grid, axis=0)
    return np.concatenate([columns, rows], axis=1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class DiT:
    """A diffusion transformer with its sampler; implements `RunnableModel`."""

    config: DiTConfig
    sampler: DDIM
    weights: Mapping[str, NDArray[np.float32]]
    """Every tensor by its checkpoint name, float32, read-only."""
    positions: NDArray[np.float32] = field(repr=False)
    """Position features of the tokens, (tokens, width)."""

    @classmethod
    def from_folder(cls, folder: Path, weights: Mapping[str, ArrayLike] | None = None) -> DiT:
        """Read a diffusers component folder with a `scheduler` folder inside; `weights` stand in for the stored ones.

        Raises
        ------
        ValueError
            The config or scheduler asks for something not implemented, or a tensor is missing, unknown or misshapen.

        """
        config = DiTConfig.from_file(folder / "config.json")
        sampler = DDIM.from_file(folder / "scheduler" / "scheduler_config.json")
        arrays = stored_weights(folder / WEIGHTS_FILE) if weights is None else weights
        checked = checked_weights(arrays, config.tensor_shapes())
        return cls(config, sampler, checked, position_features(config.grid, config.width))

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every linear and convolution weight by its checkpoint name."""
        return {f"{module}.weight": shape for module, shape in self.config.weight_shapes().items()}

    def linear(self, name: str, x: NDArray[np.float32], time: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Multiply by the model's own weight: the hook when no other is given (see `Linear`)."""
        return own_product(self.weights[name], x)

    def forward(self, step: Step, linear: Linear | None = None) -> NDArray[np.float32]:
        """Predict v for one step.

        Parameters
        ----------
        step
            `inputs` holds "hidden_states", the noisy images, float32 (n, 1, size, size), and "class_labels",
            integers (n,) in 0..n_classes, the last one the null class.
        linear
            The hook; None multiplies by the model's own weights. It is called once per name of `layers()`. What does
            not depend on the images (the timestep embedders) is computed for one row and then broadcast.

        Returns
        -------
        NDArray[np.float32]
            float32 (n, 1, size, size).

        """
        hook = linear or self.linear

        def product(module: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
            return hook(f"{module}.weight", x, step.time) + self.weights[f"{module}.bias"]

        images: NDArray[np.float32] = step.inputs["hidden_states"].astype(np.float32, copy=False)
        labels = step.inputs["class_labels"]
        features = time_features(step.time)
        conditions = []
        hidden = product("pos_embed.proj", self._patches(images)) + self.positions
        for i in range(self.config.n_blocks):
            embedder = f"transformer_blocks.{i}.norm1.emb.timestep_embedder"
            condition = product(f"{embedder}.linear_2", silu(product(f"{embedder}.linear_1", features)))
            conditions.append(silu(condition + self.weights[class_table(i)][labels]))
            hidden = self._block(f"transformer_blocks.{i}", hidden, conditions[i], product)
        shift, scale = np.split(product("proj_out_1", conditions[0])[:, None], 2, axis=-1)
        return self._images(product("proj_out_2", layer_norm(hidden, ADA_NORM_EPS) * (1 + scale) + shift))

    def trajectories(
        self,
        n: int,
        seed: int,
        split: Split = CALIBRATION,  # noqa: ARG002
        linear: Linear | None = None,
    ) -> Iterator[Step]:
        """Yield the 25 guided network calls of `n` samples of classes 0, 1, 2, ...: with their labels, then without.

        The seed alone tells calibration from evaluation, so `split` changes nothing. `linear` is the hook of these
        calls, each made before its step is yielded, for whoever wants to watch them.
        """
        labels = self.classes(n)
        for step, _ in self._denoise(labels, seed, STEPS, GUIDANCE, linear or self.linear):
            yield step

    def classes(self, n: int) -> NDArray[np.int64]:
        """Return the labels of `n` samples: the classes in turn."""
        return np.arange(n, dtype=np.int64) % self.config.n_classes

    def sample(
        self,
        labels: NDArray[np.integer] | int,
        seed: int,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        linear: Linear | None = None,
    ) -> NDArray[np.float32]:
        """Draw one image per label.

        Parameters
        ----------
        labels
            Integers (n,) in 0..n_classes-1; or n, for the classes in turn.
        seed
            Of the starting noise: the same seed starts from the same noise whatever the weights, and a shorter list of
            labels from the first part of it.
        steps
            Sampling steps, 1 to the number of training timesteps.
        guidance
            Classifier-free guidance scale; 1 is none.
        linear
            The hook; None multiplies by the model's own weights.

        Returns
        -------
        NDArray[np.float32]
            float32 (n, size, size) in [-1, 1].

        Raises
        ------
        ValueError
            A label or `steps` is out of range.

        """
        labels = self.classes(labels) if isinstance(labels, int) else np.asarray(labels)
        if labels.ndim != 1 or not np.isin(labels, np.arange(self.config.n_classes)).all():
            raise ValueError(f"labels must be a flat list of classes in 0..{self.config.n_classes - 1}, got {labels!r}")
        images = np.empty((len(labels), 1, self.config.image_size, self.config.image_size), np.float32)
        for _, images in self._denoise(labels, seed, steps, guidance, linear):  # noqa: B007  the last one is kept
            pass
        return images[:, 0]

    def _denoise(
        self, labels: NDArray[np.integer], seed: int, steps: int, guidance: float, linear: Linear | None
    ) -> Iterator[tuple[Step, NDArray[np.float32]]]:
        """Yield each guided network call with the images (n, 1, size, size) that come out of its sampling step."""
        size = self.config.image_size
        images = np.random.default_rng(seed).standard_normal((len(labels), 1, size, size), dtype=np.float32)
        both = np.concatenate([labels, np.full_like(labels, self.config.n_classes)])
        for time in self.sampler.timesteps(steps):
            step = Step({"hidden_states": np.concatenate([images, images]), "class_labels": both}, time)
            with_class, without = np.split(self.forward(step, linear), 2)
            images = self.sampler.step(without + guidance * (with_class - without), time, images, steps)
            yield step, images

    def _block(
        self, block: str, hidden: NDArray[np.float32], condition: NDArray[np.float32], product: Product
    ) -> NDArray[np.float32]:
        """Run one transformer block over tokens (n, tokens, width) under the condition (n, width)."""
        modulation = product(f"{block}.norm1.linear", condition)[:, None]
        shift, scale, gate, ff_shift, ff_scale, ff_gate = np.split(modulation, 6, axis=-1)
        x = layer_norm(hidden, ADA_NORM_EPS) * (1 + scale) + shift
        query, key, value = (product(f"{block}.attn1.to_{part}", x) for part in "qkv")
        mixed = attend(query, key, value, self.config.heads)
        hidden = hidden + gate * product(f"{block}.attn1.to_out.0", mixed)
        x = layer_norm(hidden, self.config.norm_eps) * (1 + ff_scale) + ff_shift
        return hidden + ff_gate * product(f"{block}.ff.net.2", tanh_gelu(product(f"{block}.ff.net.0.proj", x)))

    def _patches(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut images (n, 1, size, size) into tokens (n, grid * grid, patch * patch)."""
        grid, patch = self.config.grid, self.config.patch_size
        cut = images.reshape(len(images), grid, patch, grid, patch)
        return cut.swapaxes(2, 3).reshape(len(images), grid * grid, patch * patch)

    def _images(self, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Put tokens (n, grid * grid, patch * patch) together to images (n, 1, size, size)."""
        grid, patch = self.config.grid, self.config.patch_size
        cut = tokens.reshape(len(tokens), grid, grid, patch, patch)
        return cut.swapaxes(2, 3).reshape(len(tokens), 1, grid * patch, grid * patch)
