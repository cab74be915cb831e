"""Which ways of quantizing a layer are tried at a width: grids, their group sizes, and whether errors are compensated.

Plain values and decisions; knows nothing of arrays, files or models. Ways that are compared with each other store no
more bytes than the first of them, so that the one with the least error is the better one at equal size.
"""

from __future__ import annotations

from typing import Final

from arrowquant_nb.core.gates import scale_layout
from arrowquant_nb.core.strategy import method_at
from arrowquant_nb.quantizers.layout import Layout, grid_of

GROUP_SIZES: Final = (32, 64, 128, 256)
WHOLE_ROW: Final = 256  # columns that every group size divides, and one block of scale format k


class Recipe:
    """One way of quantizing a layer.

    Attributes
    ----------
    bit_width, method, group_size : the grid.
    compensated : whether rounding errors are compensated by later columns (GPTQ), which needs a Hessian.
    scale_format : float16, or k: integers under a float16 pair per 256 weights.
    """

    def __init__(
        self, bit_width: int, method: str, group_size: int, compensated: bool, scale_format: str = "float16"
    ) -> None:
        self.bit_width = bit_width
        self.method = method
        self.group_size = group_size
        self.compensated = compensated
        self.scale_format = scale_format

    @property
    def label(self) -> str:
        """Short name, such as `gptq over uls g32`."""
        scales = "k " if self.scale_format == "k" else ""
        grid = f"{self.method} {scales}g{self.group_size}"
        return f"gptq over {grid}" if self.compensated else grid

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of a weight in whole groups with float16 parameters."""
        return 8 * self.row_nbytes(WHOLE_ROW) / WHOLE_ROW

    def row_nbytes(self, columns: int) -> int:
        """Return the stored bytes of a row of so many weights, with float16 parameters."""
        grid = grid_of(self.method, self.scale_format)
        return Layout(1, columns, self.bit_width, self.group_size, grid).nbytes()


def float16_group_size(method: str, reference: Recipe, columns: int) -> int:
    """Return the smallest groups with which a float16 grid stores no more than `reference`; else the largest."""
    for size in GROUP_SIZES:
        if Recipe(reference.bit_width, method, size, False).row_nbytes(columns) <= reference.row_nbytes(columns):
            return size
    return GROUP_SIZES[-1]


def recipes(
    methods: list[str],
    bit_width: int,
    group_size: int,
    compensated: bool,
    scale_format: str = "float16",
    columns: int = WHOLE_ROW,
) -> list[Recipe]:
    """Return what is tried at `bit_width`, the reference first.

    Parameters
    ----------
    methods : list of str
        Grids by name, the reference first. Rivals that do not exist at this width are left out.
    bit_width, group_size, scale_format
        Of the reference, as the layer asked for them: where the scale format does not have them at this width, the next
        that exists. A rival has float16 parameters and gets the smallest groups with which it stores no more.
    compensated : bool
        Whether GPTQ runs over each grid.
    columns : int
        Weights of a row.
    """
    own_size, own_format = scale_layout(bit_width, group_size, scale_format)
    found = [Recipe(bit_width, method_at(methods[0], bit_width), own_size, compensated, own_format)]
    for method in methods[1:]:
        if method_at(method, bit_width) != method:
            continue
        rivals = [Recipe(bit_width, method, size, compensated) for size in GROUP_SIZES]
        fitting = [rival for rival in rivals if rival.row_nbytes(columns) <= found[0].row_nbytes(columns)]
        found += fitting[:1]
    return found
