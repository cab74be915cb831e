# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""What a trained masked language model measures, in nats per character, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.samples import vocabulary
from arrowquant_nb.samples.divergences import cross_entropy
from arrowquant_nb.samples.evaluation import nelbo
from arrowquant_nb.samples.masked_lm import HELD_OUT, MaskedLM
from arrowquant_nb.samples.runnable import EVALUATION
from arrowquant_nb.samples.vocabulary import MASK, TOKENS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.samples.runnable import Step


@dataclass(frozen=True)
class Figures:
    """What a trained folder measures, in nats per character."""

    nelbo: float
    """Bound on the negative log-likelihood of the evaluation text."""
    nelbo_calibration: float
    """The same of the calibration text."""
    nelbo_train: float
    """The same of windows of the training text."""
    frequencies: float
    """Cross entropy of the evaluation text under the frequencies of characters in the training text."""
    few: float
    """Cross entropy at masked characters with 10 % masked, evaluation text."""
    half: float
    """The same with half masked."""
    most: float
    """The same with 90 % masked."""
    top1_few: float
    """Share of characters that the model has right with 10 % masked."""
    n_windows: int
    """Windows behind each figure."""
    difference_transformers: float
    """Largest absolute difference between the NumPy forward pass and transformers' class."""


def measure(folder: Path, train_ids: NDArray[np.int64], n_windows: int = 128) -> Figures:
    """Measure the saved folder with the NumPy forward pass."""
    model = MaskedLM.from_folder(folder)
    windows = model.windows(n_windows, 0, EVALUATION)
    steps = list(model.masked_steps(windows, 0))
    outputs = [model.forward(step) for step in steps]
    masks = [step.inputs["input_ids"] == MASK for step in steps]
    few, half, most = (
        float(cross_entropy(outputs[i][masks[i]], windows[masks[i]]).mean()) for i in _steps_at(steps, (100, 500, 900))
    )
    (tenth,) = _steps_at(steps, (100,))
    right = outputs[tenth][masks[tenth]].argmax(-1) == windows[masks[tenth]]
    length = model.config.n_positions
    starts = np.random.default_rng(0).integers(len(train_ids) - length + 1, size=(n_windows, 1))
    counts = np.bincount(train_ids, minlength=len(TOKENS)) + 1
    held_out = vocabulary.encode((folder / HELD_OUT / f"{EVALUATION}.txt").read_text(encoding="utf-8"))
    return Figures(
        nelbo=nelbo(model, windows, 0),
        nelbo_calibration=nelbo(model, model.windows(n_windows, 0), 0),
        nelbo_train=nelbo(model, train_ids[starts + np.arange(length)], 0),
        frequencies=float(-np.log(counts / counts.sum())[held_out].mean()),
        few=few,
        half=half,
        most=most,
        top1_few=float(right.mean()),
        n_windows=n_windows,
        difference_transformers=difference_from_transformers(folder, steps[:: len(steps) // 5]),
    )


def _steps_at(steps: list[Step], times: tuple[int, ...]) -> list[int]:
    """Return which of `steps` lie nearest to `times`."""
    return [min(range(len(steps)), key=lambda i: abs(steps[i].time - time)) for time in times]


def difference_from_transformers(folder: Path, steps: list[Step]) -> float:
    """Largest absolute difference of the two forward passes at `steps`."""
    import torch
    from transformers import BertForMaskedLM

    theirs: Any = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    theirs.eval()
    ours = MaskedLM.from_folder(folder)
    worst = 0.0
    for step in steps:
        with torch.no_grad():
            expected = theirs(torch.from_numpy(step.inputs["input_ids"])).logits.numpy()
        worst = max(worst, float(np.abs(ours.forward(step) - expected).max()))
    return worst


def written(folder: Path, n: int, seed: int = 0) -> str:
    """Return `n` texts that the saved model writes, indented for a card."""
    texts = [vocabulary.decode(ids) for ids in MaskedLM.from_folder(folder).sample(n, seed)]
    return "\n".join("    " + repr(text) for text in texts)
