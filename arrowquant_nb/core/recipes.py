"""Which ways of quantizing a layer are tried at a width: grids, their group sizes, and whether errors are compensated.

Plain values and decisions; knows nothing of arrays, files or models. Ways that are compared with each other store no more
bytes than the first of them, so that the one with the least error is the better one at equal size.
"""

from __future__ import annotations

from typing import Final

from arrowquant_nb.core.gates import scale_layout
from arrowquant_nb.core.strategy import SIGN_PLANES, method_at

GROUP_SIZES: Final = (32, 64, 128, 256)
GROUP_BITS: Final = 32  # float16 scale and minimum
SIGN_PLANES_GROUP_BITS: Final = 48  # float16 a1, a2, mu
K_CODE_BITS: Final = ((2, 4), (4, 6))  # width of a k format's scale and minimum codes by bit width
K_BLOCK_BITS: Final = 32 / 256  # float16 d and dmin per 256 weights


class Recipe:
    """One way of quantizing a layer.

    Attributes
    ----------
    bit_width, method, group_size, scale_format : the grid.
    compensated : whether rounding errors are compensated by later columns (GPTQ), which needs a Hessian.
    """

    def __init__(self, bit_width: int, method: str, group_size: int, scale_format: str, compensated: bool) -> None:
        self.bit_width = bit_width
        self.method = method
        self.group_size = group_size
        self.scale_format = scale_format
        self.compensated = compensated

    @property
    def label(self) -> str:
        """Short name, such as `gptq over uls g32`."""
        grid = f"{self.method} g{self.group_size}"
        if self.scale_format == "k":
            grid = f"{self.method} k g{self.group_size}"
        return f"gptq over {grid}" if self.compensated else grid


def grid_bits(recipe: Recipe) -> float:
    """Bits per weight of a recipe in whole blocks, scales counted."""
    if recipe.method == SIGN_PLANES:
        return recipe.bit_width + SIGN_PLANES_GROUP_BITS / recipe.group_size
    if recipe.scale_format == "k":
        code_bits = dict(K_CODE_BITS)[recipe.bit_width]
        return recipe.bit_width + 2 * code_bits / recipe.group_size + K_BLOCK_BITS
    if recipe.method in ("rtn", "mse"):
        return recipe.bit_width + (16 + recipe.bit_width) / recipe.group_size
    return recipe.bit_width + GROUP_BITS / recipe.group_size


def recipes(
    methods: list[str], bit_width: int, group_size: int, scale_format: str, compensated: bool
) -> list[Recipe]:
    """Return what is tried at `bit_width`, the reference first.

    Parameters
    ----------
    methods : list of str
        Grids by name, the reference first. Those that do not exist at this width give way to one that does.
    bit_width, group_size, scale_format
        What the layer asked for; a width without such scales gets the nearest that it has.
    compensated : bool
        Whether GPTQ runs over each grid.
    """
    size, scales = scale_layout(bit_width, group_size, scale_format)
    first = method_at(methods[0], bit_width)
    found = [Recipe(bit_width, first, size, "float16" if first == SIGN_PLANES else scales, compensated)]
    for method in methods[1:]:
        rival = _no_larger(Recipe(bit_width, method, size, "float16", compensated), grid_bits(found[0]))
        if method_at(method, bit_width) == method and rival is not None:
            found.append(rival)
    return found


def _no_larger(recipe: Recipe, bits: float) -> Recipe | None:
    """Return the recipe with the smallest group size that takes no more bits; None where it always takes more."""
    for size in GROUP_SIZES:
        trial = Recipe(recipe.bit_width, recipe.method, size, recipe.scale_format, recipe.compensated)
        if grid_bits(trial) <= bits:
            return trial
    return None
