"""Which ways of quantizing a layer are tried at a width: grids, their group sizes, and whether errors are compensated.

Plain values and decisions; knows nothing of arrays, files or models. Ways that are compared with each other store no
more bytes than the first of them, so that the one with the least error is the better one at equal size.
"""

from __future__ import annotations

from typing import Final

from arrowquant_nb.core.strategy import SIGN_PLANES, method_at

GROUP_SIZES: Final = (32, 64, 128, 256)
MINIMUM_BITS: Final = 32  # float16 scale and minimum of a group
SIGN_PLANES_BITS: Final = 48  # float16 a1, a2 and mu


class Recipe:
    """One way of quantizing a layer.

    Attributes
    ----------
    bit_width, method, group_size : the grid.
    compensated : whether rounding errors are compensated by later columns (GPTQ), which needs a Hessian.
    """

    def __init__(self, bit_width: int, method: str, group_size: int, compensated: bool) -> None:
        self.bit_width = bit_width
        self.method = method
        self.group_size = group_size
        self.compensated = compensated

    @property
    def label(self) -> str:
        """Short name, such as `gptq over uls g32`."""
        grid = f"{self.method} g{self.group_size}"
        return f"gptq over {grid}" if self.compensated else grid

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of a weight in whole groups with float16 parameters."""
        if self.method == SIGN_PLANES:
            return self.bit_width + SIGN_PLANES_BITS / self.group_size
        if self.method in ("rtn", "mse"):
            return self.bit_width + (16 + self.bit_width) / self.group_size
        return self.bit_width + MINIMUM_BITS / self.group_size


def recipes(methods: list[str], bit_width: int, group_size: int, compensated: bool) -> list[Recipe]:
    """Return what is tried at `bit_width`, the reference first.

    Parameters
    ----------
    methods : list of str
        Grids by name, the reference first. Rivals that do not exist at this width are left out.
    bit_width, group_size : int
        Of the reference; a rival gets the smallest groups with which it stores no more.
    compensated : bool
        Whether GPTQ runs over each grid.
    """
    found = [Recipe(bit_width, method_at(methods[0], bit_width), group_size, compensated)]
    for method in methods[1:]:
        if method_at(method, bit_width) != method:
            continue
        rivals = [Recipe(bit_width, method, size, compensated) for size in GROUP_SIZES]
        fitting = [rival for rival in rivals if rival.bits_per_weight <= found[0].bits_per_weight]
        found += fitting[:1]
    return found
