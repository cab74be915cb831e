"""Quality gates and the fallback chain INT2 -> INT4 -> INT8: decisions over plain numbers.

Knows nothing of arrays, files or models. Without calibration only the weight cosine gates; the gates on
layer outputs then read `not_measured` and never count as passed.
"""

from __future__ import annotations

from typing import Final

from arrowquant_nb.config.profiles import K_GROUP_SIZES

BIT_WIDTHS: Final = (2, 4, 8)
NOT_MEASURED: Final = "not_measured"


def fallback_chain(bit_width: int) -> list[int]:
    """Bit widths to try for a layer, narrowest first: 2 -> [2, 4, 8], 8 -> [8]."""
    return [b for b in BIT_WIDTHS if b >= bit_width]


def scale_layout(bit_width: int, group_size: int, scale_format: str) -> tuple[int, str]:
    """Group size and scale format of an attempt at `bit_width` by a layer that asked for these.

    Format k has few group sizes: INT2 g16 goes on as INT4 g32. INT8 has none: it takes float16 scales for 64 weights.
    """
    if scale_format != "k":
        return group_size, scale_format
    sizes = K_GROUP_SIZES.get(bit_width, ())
    if not sizes:
        return 64, "float16"
    return (group_size if group_size in sizes else 32), "k"


def stage_floor(bit_width: int) -> float:
    """Least weight cosine accepted after a fallback to `bit_width`, whatever lower value the user asked for."""
    if bit_width >= 8:
        return 0.95
    if bit_width >= 4:
        return 0.85
    return 0.0


def required_cosine(bit_width: int, requested: int, min_accuracy: float) -> float:
    """Weight cosine that this attempt must reach: the user's, and after a fallback at least the stage's floor."""
    if bit_width == requested:
        return min_accuracy
    return max(min_accuracy, stage_floor(bit_width))


def passes(cosine: float, threshold: float) -> bool:
    """Tell whether a measured cosine reaches its threshold; a NaN never does."""
    return cosine >= threshold


def explain(bit_width: int, cosine: float, threshold: float, passed: bool, next_bit_width: int) -> str:
    """One plain sentence on what happened to an attempt; `next_bit_width` is 0 where nothing is left to try."""
    shown = f"{cosine:.5f}"
    if not passed and float(shown) >= threshold:  # rounded it would read as if it had passed
        shown = str(cosine)
    measured = f"INT{bit_width} keeps a weight cosine of {shown}"
    if passed:
        return f"{measured}, at or above the {threshold:g} asked for."
    if next_bit_width:
        return f"{measured}, below the {threshold:g} asked for, so INT{next_bit_width} is tried next."
    return f"{measured}, below the {threshold:g} asked for, and no wider format is left."
