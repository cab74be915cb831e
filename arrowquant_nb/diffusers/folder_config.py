"""The `quantization_config` of our folders as diffusers and transformers want it: an object of their own classes.

Both ask for `quant_method` with a `value`, `to_dict` and `from_dict`; what it says is `FolderSettings`.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from arrowquant_nb.export.folder_settings import QUANT_METHOD, FolderSettings

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["FolderConfig", "Method"]


class Method(StrEnum):
    """Our name among the quantization methods."""

    ARROWQUANT = QUANT_METHOD


class FolderConfig:
    """What both libraries' configuration objects of ours share."""

    def __init__(self, settings: FolderSettings) -> None:
        self.settings = settings
        """The checked contents."""

    @property
    def quant_method(self) -> Method:
        """Our name, by which the loaders find the backend."""
        return Method.ARROWQUANT

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read the JSON form.

        Raises
        ------
        MetadataError
            Damaged, or of a newer version.

        """
        config = cls(FolderSettings.from_dict(config_dict))
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return self.settings.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the JSON form; nothing has a default."""
        return self.to_dict()

    def without(self, names: Collection[str]) -> Self:
        """Return the same with some weights no longer quantized but kept."""
        layers = {name: layer for name, layer in self.settings.layers.items() if name not in names}
        kept = None if self.settings.kept is None else (*self.settings.kept, *names)
        return type(self)(replace(self.settings, layers=layers, kept=kept))

    def held_by(self, model: Any) -> Self:
        """Return the same for a model whose other weights were decoded when it was quantized in place."""
        held = model.state_dict()
        return self.without([name for name in self.settings.layers if f"{name}.packed" not in held])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.settings.layers)} quantized tensors)"
