"""How the layers of a model folder round their inputs, as the folder was made and as a caller asks. Knows no module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.errors import ConfigurationError, ValidationError
from arrowquant_nb.runtime.input_format import INPUT_RULES, InputFormat
from arrowquant_nb.storage.policy import steers_all_channels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["InputRules"]


@dataclass(frozen=True)
class InputRules:
    """How every layer of a folder rounds its inputs."""

    folder: QuantizedModel
    rule: str | None
    """As `load_quantized` was given it."""
    bits: Mapping[str, int]
    """Of the layers whose inputs the folder wants rounded."""

    def __post_init__(self) -> None:
        if self.rule not in (None, *INPUT_RULES):
            raise ConfigurationError(f"inputs {self.rule!r} is not one of {', '.join(INPUT_RULES)}")
        if self.rule == "static" and self.folder.time_aware is None:
            raise ValidationError(
                f"{self.folder.path} has no grids for the inputs of any layer: quantize with activation_bit_width, or "
                "load with inputs='per_token'"
            )

    def of_layer(self, name: str) -> InputFormat | None:
        """Return the rounding of one layer's inputs, None where they stay float."""
        wanted = name in self.bits if self.bits else self.rule is not None and not self._steers(name)
        if self.rule == "float" or not wanted:
            return None
        bits, tables = self.bits.get(name, 8), self.folder.time_aware
        if self.rule in (None, "static") and tables is not None and name in tables.by_layer:
            return InputFormat("static", bits, tables.by_layer[name])
        return InputFormat("per_group" if self.rule == "per_group" else "per_token", bits)

    def means_of(self, name: str, inputs: InputFormat) -> NDArray[np.float32] | None:
        """Return the channel means that are taken off a layer's inputs, float32 (time groups, columns).

        Those of groups need their table.
        """
        spatial = self.folder.spatial_of(name)
        means = None if spatial is None else spatial.activation_means.get(name)
        return np.array(means, np.float32) if means and (inputs.table is not None or len(means) == 1) else None

    def _steers(self, name: str) -> bool:
        return steers_all_channels(name, self.folder.facts.get("class_name"), self.folder.modality)
