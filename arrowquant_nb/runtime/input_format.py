"""How a layer's inputs are rounded before the product: not at all, by their own range, or by a table over time.

JSON values. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arrowquant_nb.errors import MetadataError
from arrowquant_nb.json_form import JsonForm
from arrowquant_nb.quantizers.activation_grid import ACTIVATION_BIT_WIDTHS
from arrowquant_nb.quantizers.time_tables import LayerTimeTable

__all__ = ["INPUT_RULES", "InputFormat"]

INPUT_RULES = ("float", "per_token", "per_group", "static")
GROUP_SIZE = 64
"""Channels of a token that share a scale by the rule per_group."""


@dataclass(frozen=True)
class InputFormat(JsonForm):
    """The rounding of one layer's inputs: asymmetric grids, zero exact, halves to even (see `activation_grid`)."""

    rule: str = "float"
    """float: as they are. per_token: every row on a grid of its own range. per_group: every row and group of 64
    channels. static: the grid that `table` has for the timestep."""
    bit_width: int = 8
    """4 or 8."""
    table: LayerTimeTable | None = None
    """Grids per group of timesteps, by the rule static."""

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"table": LayerTimeTable}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> InputFormat:
        """Rebuild the value from `to_dict`."""
        table = data.get("table")
        known = {key: data[key] for key in ("rule", "bit_width") if key in data}
        return cls(**known, table=None if table is None else LayerTimeTable.from_dict(table))

    def __post_init__(self) -> None:
        """Refuse rules that do not exist, and a table without its rule."""
        if self.rule not in INPUT_RULES:
            raise MetadataError(f"the rule of inputs {self.rule!r} is not one of {', '.join(INPUT_RULES)}")
        if self.bit_width not in ACTIVATION_BIT_WIDTHS:
            raise MetadataError(f"activation bit_width {self.bit_width!r} is not one of 4, 8")
        if (self.table is not None) != (self.rule == "static"):
            raise MetadataError(f"the rule static, and no other, needs a time table; the rule is {self.rule!r}")
        if self.table is not None and any(g.zero_point >= 2**self.bit_width for g in self.table.groups):
            raise MetadataError(f"{self.table.layer}: a zero point of its time table is no {self.bit_width}-bit code")

    @property
    def is_float(self) -> bool:
        """Whether inputs stay as they are."""
        return self.rule == "float"
