"""The `quantization_config` of our folders as diffusers and transformers want it: an object of their own classes.

Both ask for `quant_method` with a `value`, `to_dict` and `from_dict`; what it says is `FolderSettings`.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from arrowquant_nb.export.folder_settings import QUANT_METHOD, FolderSettings
from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

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
        """Return what a model that was quantized in place holds: its layers as they are, the other weights kept.

        Inputs rounded per group of channels are written down as rounded per token; the format knows no groups.
        """
        layers = {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, QuantizedLayer)}
        forms = {
            name: replace(layer.form, activation_bit_width=0 if layer.inputs.is_float else layer.inputs.bit_width)
            for name, layer in layers.items()
        }
        tables = self.settings.time_aware
        if tables is not None:
            static = {name for name, layer in layers.items() if layer.inputs.table is not None}
            kept_tables = tuple(table for table in tables.tables if table.layer in static)
            tables = replace(tables, tables=kept_tables) if kept_tables else None
        rest = [name for name in self.settings.layers if name not in forms]
        kept = None if self.settings.kept is None else (*self.settings.kept, *rest)
        return type(self)(replace(self.settings, layers=forms, kept=kept, time_aware=tables))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.settings.layers)} quantized tensors)"
