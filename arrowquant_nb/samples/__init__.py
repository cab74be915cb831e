"""Small real diffusion models that come with the package, and the NumPy code that runs them.

A leaf: NumPy, safetensors and ml_dtypes only. It knows nothing of quantization; whoever holds other weights for one of
these models passes them to `runnable` and gets back a model that samples with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .runnable import Linear, RunnableModel, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

__all__ = ["WEIGHTS", "Linear", "RunnableModel", "Step", "load", "names", "runnable"]

WEIGHTS = Path(__file__).resolve().parent / "weights"


def names() -> tuple[str, ...]:
    """Return the names of the bundled models, sorted.

    Examples
    --------
    >>> names()
    ('digits-dit',)

    """
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/config.json")))


def load(name: str) -> Path:
    """Return the folder of the bundled model `name`: config.json, safetensors, metadata.json, scheduler, model card.

    Raises
    ------
    LookupError
        No bundled model has that name; the message lists those there are.

    """
    if name not in names():
        raise LookupError(f"there is no bundled model {name!r}; the bundled models are: {', '.join(names()) or 'none'}")
    return WEIGHTS / name


def runnable(name: str, weights: Mapping[str, ArrayLike] | None = None) -> RunnableModel:
    """Return the bundled model `name`, ready to run in NumPy.

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

    return DiT.from_folder(load(name), weights)
