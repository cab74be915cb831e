"""What `save_pretrained` of a model of diffusers writes of packed codes: safetensors, or nothing.

diffusers asks a quantization method only after it has written the configuration. Knows no layer.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from arrowquant_nb.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NO_PICKLE", "SafetensorsOnly", "save_any_way", "save_safetensors_only"]

NO_PICKLE: Final = (
    "safe_serialization=False writes a pickle, from which quantized layers are not loaded: leave it out (safetensors), "
    "or call the model's dequantize() first to save its floats"
)


class SafetensorsOnly:
    """A model's `save_pretrained` that first looks at the format; keeps name, docstring and signature.

    An object and not a closure, so that a copied or unpickled model saves itself.
    """

    def __init__(self, model: Any) -> None:
        functools.update_wrapper(self, model.save_pretrained)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model.

        Raises
        ------
        ConfigurationError
            As a pickle, which no folder of ours is loaded from, or in another format whose writer casts codes.

        """
        save: Callable[..., Any] = self.__wrapped__  # type: ignore[attr-defined]
        given = inspect.signature(save).bind(*args, **kwargs).arguments
        if given.get("use_flashpack"):
            raise ConfigurationError("use_flashpack=True casts the codes of quantized layers: leave it out")
        if not given.get("safe_serialization", True):
            raise ConfigurationError(NO_PICKLE)
        return save(*args, **kwargs)


def save_safetensors_only(model: Any) -> None:
    """Have `save_pretrained` of a model of diffusers refuse what would not be loaded again; twice is once."""
    if not isinstance(model.save_pretrained, SafetensorsOnly):
        model.save_pretrained = SafetensorsOnly(model)


def save_any_way(model: Any) -> None:
    """Give a model its own `save_pretrained` back; any other stays as it is."""
    if isinstance(model.save_pretrained, SafetensorsOnly):
        del model.save_pretrained
