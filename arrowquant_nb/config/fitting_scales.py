"""How scales are stored where the user leaves it open: the profile's way, or the next one that goes with the rest.

A profile names one scale format and group size, for its own bit width. Another width or method may not have them
(scale format `k` exists at 2 and 4 bits, for affine grids), and at another width scale format `k` takes the smallest
group: 16 weights at 2 bits, as profile edge does (groups of 32 save 0.25 bits, worth 1.5 dB, and lose 2.3 to 2.8 dB of
the bundled models' output). What the profile filled in then gives way, while what the user said himself is left for the
settings to refuse. Plain values only.
"""

import operator
from collections.abc import Mapping

from arrowquant_nb.config.profiles import FLOAT16_GROUP_SIZES, K_GROUP_SIZES, K_METHODS, PROFILES, ScaleFormat

__all__ = ["fitting_scales"]


def fitting_scales(profile: str, filled: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Return `scale_format` and `group_size` where they are not `given`.

    Parameters
    ----------
    profile : str
        Name in `PROFILES`.
    filled : Mapping
        Every field, unchecked: what the user gave, else the profile's.
    given : Mapping
        What the user gave.
    """
    bit_width = _whole(filled["bit_width"])
    sizes = K_GROUP_SIZES.get(bit_width, ())
    fits = bool(sizes) and str(filled["method"]) in K_METHODS
    if "group_size" in given:
        fits = fits and _whole(given["group_size"]) in sizes
    wanted = filled["scale_format"] == ScaleFormat.K
    with_k = wanted and (fits or "scale_format" in given)
    found: dict[str, object] = {}
    if "scale_format" not in given:
        found["scale_format"] = ScaleFormat.K if with_k else ScaleFormat.FLOAT16
    if "group_size" not in given:
        found["group_size"] = _k_group_size(profile, bit_width) if with_k else FLOAT16_GROUP_SIZES[profile]
    return found


def _k_group_size(profile: str, bit_width: int) -> object:
    own, sizes = PROFILES[profile], K_GROUP_SIZES.get(bit_width, (32,))
    return own["group_size"] if own["bit_width"] == bit_width and own["group_size"] in sizes else sizes[0]


def _whole(value: object) -> int:
    """Return an integer of any kind as int; -1 for what the settings will refuse."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return -1
