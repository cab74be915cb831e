"""In which ways a layer may be stored when its size is open: widths 2, 4 and 8, and the group sizes of each.

Plain decisions; knows nothing of arrays, files or models. What each way costs is for `runs` to measure.
"""

from __future__ import annotations

from typing import Final

# Smallest error first at each width; what lies outside costs bytes or decibels that neighbouring widths give cheaper.
K_FORMATS: Final = ((2, 16, "k"), (2, 32, "k"), (4, 32, "k"), (4, 64, "k"), (8, 64, "float16"))
FLOAT16_FORMATS: Final = (
    (2, 32, "float16"), (2, 64, "float16"), (4, 32, "float16"), (4, 64, "float16"), (4, 128, "float16"),
    (8, 64, "float16"),
)  # fmt: skip


def candidate_formats(scale_format: str, columns: int) -> list[tuple[int, int, str]]:
    """Return (bit width, group size, scale format) of every way, by rising width and group size.

    A group that is longer than a row stores what the shortest such group does, and is left out.
    """
    formats = K_FORMATS if scale_format == "k" else FLOAT16_FORMATS
    found: list[tuple[int, int, str]] = []
    for bit_width, group_size, scales in formats:
        first = not any(bits == bit_width for bits, _, _ in found)
        if first or group_size < 2 * columns:
            found.append((bit_width, group_size, scales))
    return found
