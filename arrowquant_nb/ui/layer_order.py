"""What a user orders for one layer, and how that enters the settings. Pure values: knows no widgets and no runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.tables import WIDTH_NAMES

if TYPE_CHECKING:
    from arrowquant_nb.results import PlanRow

__all__ = ["KEEP", "LayerOrder", "applied", "ordered_words", "orders_of"]

KEEP: Final = 16
"""Bit width that stands for keeping a layer in float."""


@dataclass(frozen=True)
class LayerOrder:
    """One layer, and how it is to be stored."""

    name: str
    """Full name of its weight."""
    bit_width: int | None = None
    """2, 4 or 8; 16 keeps it; None leaves the width to the settings."""
    method: str = ""
    """A method's name; "" leaves it to the settings."""

    @classmethod
    def of(cls, row: "PlanRow", bit_width: int, method: str, config: DiffusionQuantConfig) -> "LayerOrder":
        """Return the order that gives a layer this width and method, and says no more than it must.

        Parameters
        ----------
        row : the layer in the plan of its latest run.
        config : settings of that run.
        """
        pinned = row.rule == "layer_bit_widths" or bit_width != row.bit_width
        other = bit_width != KEEP and method != str(config.method)
        return cls(row.name, bit_width if pinned else None, method if other else "")

    @property
    def words(self) -> str:
        """What it says, such as "INT8 by mse"."""
        if self.bit_width == KEEP:
            return "kept in float"
        width = "" if self.bit_width is None else WIDTH_NAMES[self.bit_width]
        by = f"by {self.method}" if self.method else ""
        return " ".join(filter(None, (width, by))) or "as the settings say"


def applied(config: DiffusionQuantConfig, orders: Iterable[LayerOrder]) -> DiffusionQuantConfig:
    """Return the settings with the orders in place of what they say of these layers by name.

    Examples
    --------
    >>> config = applied(DiffusionQuantConfig(), [LayerOrder("proj_out.weight", 8, "mse")])
    >>> dict(config.layer_bit_widths), str(config.layer_methods["proj_out.weight"])
    ({'proj_out.weight': 8}, 'mse')
    >>> applied(config, [LayerOrder("proj_out.weight")]) == DiffusionQuantConfig()
    True
    """
    widths, methods = dict(config.layer_bit_widths), {n: str(m) for n, m in config.layer_methods.items()}
    for order in orders:
        widths.pop(order.name, None)
        methods.pop(order.name, None)
        if order.bit_width is not None:
            widths[order.name] = order.bit_width
        if order.method:
            methods[order.name] = order.method
    return config.replace(layer_bit_widths=widths, layer_methods=methods)


def orders_of(config: DiffusionQuantConfig) -> tuple[LayerOrder, ...]:
    """Return what the settings say of single layers, names and globs alike."""
    widths, methods = config.layer_bit_widths, config.layer_methods
    names = dict.fromkeys([*widths, *methods])
    return tuple(LayerOrder(name, widths.get(name), str(methods.get(name, ""))) for name in names)


def ordered_words(orders: Iterable[LayerOrder]) -> str:
    """Return the orders in one line, such as "proj_out.weight: INT8 by mse"."""
    return ", ".join(f"{order.name}: {order.words}" for order in orders)
