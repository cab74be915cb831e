"""Statistics of a convolution in channel groups: one capture per group, whose inputs meet rows of the weight its own.

A calibration files group k of a weight under ``weight[k]``. Knows names and captures; not how they came about.
"""

from __future__ import annotations

from itertools import count, islice, takewhile
from typing import TYPE_CHECKING, Final

from arrowquant_nb.errors import ShapeMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arrowquant_nb.calibration.statistics import Calibration, LayerCapture

__all__ = ["MOST_GROUPS", "captures_of", "group_names", "has_groups", "weights_of"]

MOST_GROUPS: Final = 128
"""Of a convolution that is calibrated: each group keeps a megabyte of histograms and rows. Beyond this they are
depthwise as a rule, with a row of weights or two to a group."""


def group_names(weight: str, n_groups: int) -> tuple[str, ...]:
    """Return the names under which a weight's statistics are filed; of one group the weight's own."""
    return (weight,) if n_groups == 1 else tuple(islice(_numbered(weight), n_groups))


def has_groups(calibration: Calibration, weight: str) -> bool:
    """Tell whether a weight was observed in channel groups."""
    return next(_numbered(weight)) in calibration


def captures_of(calibration: Calibration, weight: str, rows: int, columns: int) -> tuple[LayerCapture, ...]:
    """Return the captures of a weight: one, or one per channel group, in order; none where it was not observed.

    Raises
    ------
    ShapeMismatchError
        The weight has other columns, or rows that so many groups cannot share: the calibration is of another model.

    """
    names = (weight,) if weight in calibration else tuple(takewhile(calibration.__contains__, _numbered(weight)))
    if len(names) > 1 and rows % len(names):
        raise ShapeMismatchError(
            f"the calibration of {weight!r} has {len(names)} channel groups, which cannot share {rows} rows: it is of "
            "another model; calibrate the model that is quantized"
        )
    return tuple(calibration.check_layer(name, columns) for name in names)


def weights_of(calibration: Calibration) -> tuple[str, ...]:
    """Return the weights that were observed, each once."""
    return tuple(dict.fromkeys(n.rpartition("[")[0] if n.endswith("]") else n for n in calibration))


def _numbered(weight: str) -> Iterator[str]:
    return (f"{weight}[{k}]" for k in count())
