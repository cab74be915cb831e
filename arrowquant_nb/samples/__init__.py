"""Small real diffusion models that come with the package, and the NumPy code that runs them.

A leaf: NumPy, safetensors and ml_dtypes only. It knows nothing of quantization; whoever holds other weights for one of
these models passes them to `runnable` and gets back a model that samples with them, or to `evaluate` and gets figures.

    runnable.py     the protocol: layers, trajectories, forward, sample, and the one hook `linear`
    dit.py          DiTTransformer2DModel (digits-dit, plucks-dit); layout.py its tensors, ddim.py its sampler
    masked_lm.py    BertForMaskedLM (docs-mlm, stdlib-mlm); bert_layout.py its tensors, vocabulary.py its characters
    spectrogram.py  log-spectra of sound and back (Griffin-Lim); tones.py makes the sounds
    evaluation.py   figures for each modality; divergences.py computes them, judge.py sees digits
    numerics.py, tensors.py
                    what the models share
    train/          how they were trained (extra `train`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .runnable import Linear, RunnableModel, Sample, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from .evaluation import AnyEvaluation

__all__ = [
    "WEIGHTS", "Linear", "RunnableModel", "Sample", "Step",
    "decode", "evaluate", "load", "modality", "names", "runnable",
]  # fmt: skip

WEIGHTS = Path(__file__).resolve().parent / "weights"
JUDGE = WEIGHTS / "digits-judge" / "judge.safetensors"
"""The classifier of `judge.py`."""


def names() -> tuple[str, ...]:
    """Return the names of the bundled models, sorted.

    Examples
    --------
    >>> names()
    ('digits-dit', 'docs-mlm', 'plucks-dit', 'stdlib-mlm')

    """
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/config.json")))


def load(name: str) -> Path:
    """Return the folder of the bundled model `name`: config.json, safetensors, metadata.json, model card and more.

    Raises
    ------
    LookupError
        No bundled model has that name; the message lists those there are.

    """
    if name not in names():
        raise LookupError(f"there is no bundled model {name!r}; the bundled models are: {', '.join(names()) or 'none'}")
    return WEIGHTS / name


def modality(name: str) -> str:
    """Return what the bundled model `name` makes: text, code, image or audio."""
    metadata = json.loads((load(name) / "metadata.json").read_text(encoding="utf-8"))
    return str(metadata["modality"])


def decode(ids: NDArray[np.integer]) -> str:
    """Return the text of the character ids that a language model writes or takes as "input_ids"; `?` for a mask."""
    from .vocabulary import decode as text_of  # noqa: PLC0415  reading a folder's path must not import NumPy

    return text_of(ids)


def runnable(name: str, weights: Mapping[str, ArrayLike] | None = None) -> Sample:
    """Return the bundled model `name`, ready to run in NumPy: a `dit.DiT` or a `masked_lm.MaskedLM`.

    Parameters
    ----------
    name
        One of `names()`.
    weights
        Every tensor of the model by its checkpoint name, for example dequantized ones; any float dtype, converted to
        float32. None takes the trained weights. To replace a few: ``{**runnable(name).weights, "X.weight": array}``.

    Raises
    ------
    LookupError
        No bundled model has that name.
    ValueError
        A tensor of `weights` is missing, unknown or of the wrong shape; the message names it.

    """
    from .dit import DiT  # noqa: PLC0415  reading a folder's path must not import the numerics
    from .masked_lm import MaskedLM  # noqa: PLC0415

    folder = load(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("_class_name") == "DiTTransformer2DModel":
        return DiT.from_folder(folder, weights)
    return MaskedLM.from_folder(folder, weights)


def evaluate(
    name: str,
    weights: Mapping[str, ArrayLike] | None = None,
    n: int = 20,
    seed: int = 0,
    linear: Linear | None = None,
    model: Sample | None = None,
) -> AnyEvaluation:
    """Measure what `weights`, `linear` or another way to run it cost the bundled model `name` at its output.

    See `evaluation.evaluate`.
    """
    from . import evaluation  # noqa: PLC0415  likewise

    return evaluation.evaluate(name, weights, n, seed, linear, model)
