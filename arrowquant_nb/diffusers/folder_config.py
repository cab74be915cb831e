"""The `quantization_config` of our folders as diffusers and transformers want it: an object of their own classes.

Both ask for `quant_method` with a `value`, `to_dict` and `from_dict`; what it says is `FolderSettings`.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.export.folder_settings import QUANT_METHOD, FolderSettings
from arrowquant_nb.runtime.module_tree import quantized_layers

if TYPE_CHECKING:
    from collections.abc import Collection

    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["FolderConfig", "Method"]


_NOT_MADE_BY_HAND: Final = (
    "{kind} (given {given}) says how the codes of a folder are stored, and SomeModel.from_pretrained(FOLDER) reads it "
    "there. To quantize a float model: arrowquant_nb.diffusers.quantize_pipeline(model, DiffusionQuantConfig(...)). "
    "To make a folder of a model that is quantized: arrowquant export MODEL FOLDER --to diffusers"
)


class Method(StrEnum):
    """Our name among the quantization methods."""

    ARROWQUANT = QUANT_METHOD


class FolderConfig:
    """What both libraries' configuration objects of ours share.

    They say how a folder's codes are stored: `from_pretrained` reads them there, and nobody else need make one.

    Parameters
    ----------
    settings
        The checked contents.

    Raises
    ------
    ConfigurationError
        Made of nothing, or of anything else such as a width: neither library's loader quantizes by it.
    """

    def __init__(self, settings: FolderSettings | None = None, **others: object) -> None:
        if others or not isinstance(settings, FolderSettings):
            given = sorted(others) or ("nothing" if settings is None else type(settings).__name__)
            raise ConfigurationError(_NOT_MADE_BY_HAND.format(kind=type(self).__name__, given=given))
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
        ConfigurationError
            It describes no folder.
        MetadataError
            Damaged, or of a newer version.

        """
        if not config_dict.keys() & {"layers", "format_version"}:
            given = sorted(config_dict.keys() - {"quant_method"}) or "nothing"
            raise ConfigurationError(_NOT_MADE_BY_HAND.format(kind=cls.__name__, given=given))
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

    @classmethod
    def held_by(cls, model: Any, folder: QuantizedModel) -> Self:
        """Return what a model holds whose layers come from a model folder: these as they are, other weights kept.

        Of layers that share their codes the folder names one.
        """
        modules = {f"{path}.weight": layer for path, layer in quantized_layers(model).items()}
        layers = {name: modules[name] for name in folder if name in modules}
        forms = {name: layer.described() for name, layer in layers.items()}
        tables = folder.time_aware
        if tables is not None:
            kept = tuple(table for table in tables.tables if table.layer in layers and layers[table.layer].inputs.table)
            tables = replace(tables, tables=kept) if kept else None
        rest = tuple(name for name in folder if name not in forms)
        return cls(FolderSettings(forms, folder.modality, rest, tables))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.settings.layers)} quantized tensors)"
