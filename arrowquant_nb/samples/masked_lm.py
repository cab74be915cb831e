"""transformers' `BertForMaskedLM` (Devlin et al. 2019) as a float32 NumPy forward pass, and masked diffusion with it.

A sequence is noised by masking characters and drawn by unmasking them (Sahoo et al. 2024; Nie et al. 2025, LLaDA); the
share of masked characters times 1000 is the timestep. It reads a transformers folder with held-out text inside and
implements `Sample`: every product with a weight matrix goes through one hook. It needs no torch and knows nothing of
quantization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from . import vocabulary
from .bert_layout import EMBEDDINGS, HEAD, POSITIONS, TOKEN_TYPES, WORDS, BertConfig
from .numerics import attend, gelu, layer_norm
from .runnable import CALIBRATION, STEPS, Step
from .tensors import checked_weights, own_product, stored_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from .runnable import Linear, Split

    Product: TypeAlias = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]

WEIGHTS_FILE = "model.safetensors"
HELD_OUT = "held_out"
"""Folder inside a model's: `calibration.txt` and `evaluation.txt`, text that the model was not trained on."""
N_TIMES = 1000
"""Timesteps: a share r of masked characters is timestep 1000 r, and everything masked the last one, 999."""


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """A masked diffusion language model over characters; implements `Sample`."""

    config: BertConfig
    weights: Mapping[str, NDArray[np.float32]]
    """Every tensor by its checkpoint name, float32, read-only."""
    folder: Path
    """Where its held-out text lies."""

    @classmethod
    def from_folder(cls, folder: Path, weights: Mapping[str, ArrayLike] | None = None) -> MaskedLM:
        """Read a transformers folder; `weights` stand in for the stored ones.

        Raises
        ------
        ValueError
            The config asks for something not implemented, or a tensor is missing, unknown or misshapen.

        """
        config = BertConfig.from_file(folder / "config.json")
        if config.n_tokens != len(vocabulary.TOKENS):
            raise ValueError(
                f"{folder / 'config.json'}: vocab_size is {config.n_tokens}; "
                f"this forward pass implements {len(vocabulary.TOKENS)}, one per character"
            )
        arrays = stored_weights(folder / WEIGHTS_FILE) if weights is None else weights
        return cls(config, checked_weights(arrays, config.tensor_shapes()), folder)

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight that is multiplied with by its checkpoint name, in the order of use.

        The last one is the table of characters: looked up at the input, it is the matrix of the output layer too.
        """
        return self.config.weight_shapes()

    def linear(self, name: str, x: NDArray[np.float32], time: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Multiply by the model's own weight: the hook when no other is given (see `Linear`)."""
        return own_product(self.weights[name], x)

    def forward(self, step: Step, linear: Linear | None = None) -> NDArray[np.float32]:
        """Predict every character of one step.

        Parameters
        ----------
        step
            `inputs` holds "input_ids", integers (n, characters) in 0..tokens-1, at most `config.n_positions` characters
            long. Nothing is padding: every position attends to every other.
        linear
            The hook; None multiplies by the model's own weights. It is called once per name of `layers()`.

        Returns
        -------
        NDArray[np.float32]
            Unnormalized log-probabilities, float32 (n, characters, tokens).

        Raises
        ------
        ValueError
            The text is longer than the model has positions.

        """
        hook = linear or self.linear
        weights = self.weights

        def product(module: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
            return hook(f"{module}.weight", x, step.time) + weights[f"{module}.bias"]

        ids = step.inputs["input_ids"]
        if ids.shape[1] > self.config.n_positions:
            raise ValueError(f"input_ids is {ids.shape[1]} characters long; the model has {self.config.n_positions}")
        hidden = weights[WORDS][ids] + weights[POSITIONS][: ids.shape[1]] + weights[TOKEN_TYPES][0]
        hidden = self._norm(EMBEDDINGS, hidden)
        for i in range(self.config.n_layers):
            hidden = self._layer(f"bert.encoder.layer.{i}", hidden, product)
        hidden = self._norm(f"{HEAD}.transform", gelu(product(f"{HEAD}.transform.dense", hidden)))
        return hook(WORDS, hidden, step.time) + weights[f"{HEAD}.bias"]

    def windows(self, n: int, seed: int, split: Split = CALIBRATION) -> NDArray[np.int64]:
        """Return `n` windows of held-out text at places drawn from `seed`, int64 (n, characters), nothing masked."""
        ids = vocabulary.encode((self.folder / HELD_OUT / f"{split}.txt").read_text(encoding="utf-8"))
        starts = np.random.default_rng([seed, 0]).integers(len(ids) - self.config.n_positions + 1, size=(n, 1))
        windows: NDArray[np.int64] = ids[starts + np.arange(self.config.n_positions)]
        return windows

    def masked_steps(self, windows: NDArray[np.int64], seed: int) -> Iterator[Step]:
        """Mask `windows` (n, characters) ever less: one step for each share of masked characters.

        The shares are the midpoints of 25 equal parts of [0, 1], largest first, rounded to whole characters. A window
        is unmasked in an order drawn from `seed`, so what is visible at one step is visible at all later ones.
        """
        n, length = windows.shape
        ranks = _ranks(n, length, seed)
        for i in range(STEPS):
            share = 1 - (i + 0.5) / STEPS
            masked = ranks < max(1, round(share * length))
            yield Step({"input_ids": np.where(masked, vocabulary.MASK, windows)}, _time(share))

    def trajectories(self, n: int, seed: int, split: Split = CALIBRATION) -> Iterator[Step]:
        """Yield 25 network calls over `n` windows of held-out text, from nearly all masked to nearly nothing.

        Parameters
        ----------
        n, seed
            Windows, and the seed of their places and of the order in which they are unmasked (`masked_steps`).
        split
            Which part of the held-out text they are drawn from.

        """
        return self.masked_steps(self.windows(n, seed, split), seed)

    def sample(
        self,
        n: int,
        /,
        seed: int,
        steps: int | None = None,
        temperature: float = 0.7,
        *,
        linear: Linear | None = None,
    ) -> NDArray[np.int64]:
        """Write `n` texts: start from masks alone and unmask characters in an order drawn from `seed`.

        Parameters
        ----------
        n
            Texts, each as long as the model has positions.
        seed
            Of the order and of the draws: the same whatever the weights, and for fewer texts the first of more.
        steps
            Network calls, 1 to the length; None unmasks one character per call.
        temperature
            The probabilities' exponent is 1 / temperature; 0 takes the likeliest character.
        linear
            The hook; None multiplies by the model's own weights.

        Returns
        -------
        NDArray[np.int64]
            Ids (n, characters); `vocabulary.decode` reads them.

        Raises
        ------
        ValueError
            `steps` or `temperature` is out of range.

        """
        length = self.config.n_positions
        steps = length if steps is None else steps
        if not 1 <= steps <= length:
            raise ValueError(f"steps is {steps}; it must lie in 1..{length}, the characters of a text")
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature}; it must not be negative")
        ranks = _ranks(n, length, seed)
        luck = _gumbel(n, length, self.config.n_tokens, seed)
        ids = np.full((n, length), vocabulary.MASK)
        for i in range(steps):
            step = Step({"input_ids": ids}, _time(1 - i / steps))
            scores = self.forward(step, linear) + temperature * luck
            scores[..., : vocabulary.N_SPECIAL] = -np.inf
            masked = ranks < length - round(length * (i + 1) / steps)
            ids = np.where(masked | (ids != vocabulary.MASK), ids, scores.argmax(-1))
        return ids

    def _layer(self, layer: str, hidden: NDArray[np.float32], product: Product) -> NDArray[np.float32]:
        """Run one transformer layer over characters (n, characters, width), norms last."""
        attention = f"{layer}.attention"
        query, key, value = (product(f"{attention}.self.{part}", hidden) for part in ("query", "key", "value"))
        mixed = product(f"{attention}.output.dense", attend(query, key, value, self.config.heads))
        hidden = self._norm(f"{attention}.output", mixed + hidden)
        inner = gelu(product(f"{layer}.intermediate.dense", hidden))
        return self._norm(f"{layer}.output", product(f"{layer}.output.dense", inner) + hidden)

    def _norm(self, module: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        scale, shift = (self.weights[f"{module}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return layer_norm(x, self.config.norm_eps) * scale + shift


def _time(share: float) -> int:
    """Return the timestep at which a `share` of the characters is masked."""
    return min(round(share * N_TIMES), N_TIMES - 1)


def _ranks(n: int, length: int, seed: int) -> NDArray[np.int64]:
    """Return the order in which characters are unmasked, int64 (n, length): 0 last."""
    return np.random.default_rng([seed, 1]).random((n, length)).argsort(-1).argsort(-1)


def _gumbel(n: int, length: int, n_tokens: int, seed: int) -> NDArray[np.float32]:
    """Return noise whose largest sum with log-probabilities is a draw from them (Gumbel 1954), (n, length, tokens)."""
    uniform = np.random.default_rng([seed, 2]).random((n, length, n_tokens), dtype=np.float32)
    noise: NDArray[np.float32] = -np.log(-np.log(np.clip(uniform, 1e-7, 1 - 1e-7)))
    return noise
