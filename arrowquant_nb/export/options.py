"""What a user may ask of an export beside its target."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_nb.errors import ConfigurationError

__all__ = ["ExportOptions"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export; a target that has no use for one refuses it."""

    weight_type: str | None = None
    """What weights become: a type of the target. None = what the target does best."""
    convolutions: bool = False
    """gguf: quantized convolutions as blocks too."""

    def check_weight_type(self, target: str, types: tuple[str, ...]) -> None:
        """Raise ConfigurationError for a weight type that the target does not have."""
        if self.weight_type is not None and self.weight_type not in types:
            there = f"it has {', '.join(types)}" if types else "it has none to choose: leave weight_type out"
            raise ConfigurationError(f"{target} does not have the weight_type {self.weight_type!r}; {there}")

    def check_convolutions(self, target: str) -> None:
        """Raise ConfigurationError where convolutions are not for the user to choose."""
        if self.convolutions:
            raise ConfigurationError(f"convolutions is an option of gguf: leave it out for {target}")
