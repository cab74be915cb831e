"""NumPy dtypes of the element types that checkpoints use, bfloat16 and float8 by ml_dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from arrowquant_nb.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def numpy_dtype(name: DTypeLike | str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name such as "bfloat16"; an unknown name raises `ConfigurationError`."""
    if isinstance(name, str) and name in _EXTENDED:
        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return extended
    try:
        return np.dtype(name)
    except TypeError as error:
        raise ConfigurationError(f"unknown dtype {name!r}; use float32, float16 or bfloat16") from error
