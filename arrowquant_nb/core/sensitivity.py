"""Which layers are sensitive: outliers of what each costs when it alone is quantized.

Plain numbers and sentences; knows nothing of how the cost was measured.
"""

from __future__ import annotations

import math
from typing import Final

# A layer is sensitive when its cost lies this many median absolute deviations above the median, both of logarithms.
DEVIATIONS: Final = 3.0
# Costs within a factor of two of the median are alike, however close together the others lie.
LEAST_FACTOR: Final = 2.0


def threshold(costs: list[float]) -> float:
    """Return the cost above which a layer is sensitive: median + 3 MAD of the logarithms, at least twice the median.

    Costs of zero (nothing lost) take no part; infinity where fewer than three are left to compare.
    """
    logs = sorted([math.log(cost) for cost in costs if cost > 0.0])
    if len(logs) < 3:
        return math.inf
    middle = _median(logs)
    deviation = _median(sorted([abs(value - middle) for value in logs]))
    return math.exp(middle + max(DEVIATIONS * deviation, math.log(LEAST_FACTOR)))


def flags(costs: list[float]) -> list[bool]:
    """Tell for every cost whether its layer is sensitive."""
    limit = threshold(costs)
    return [cost > limit for cost in costs]


def explain(cost: float, costs: list[float], where: str, bit_width: int) -> str:
    """One sentence on a layer's cost; `where` says what was measured, such as `the network's output`.

    Without others to compare with, `costs` is empty.
    """
    if cost <= 0.0:
        return f"INT{bit_width} in this layer alone leaves {where} exact."
    said = f"INT{bit_width} in this layer alone leaves {where} {-10.0 * math.log10(cost):.1f} dB"
    positive = sorted([value for value in costs if value > 0.0])
    if not positive:
        return f"{said}."
    ratio = cost / math.exp(_median(sorted([math.log(value) for value in positive])))
    compared = f"{ratio:.2g} times the noise of the median layer"
    if cost > threshold(costs):
        return f"{said}, {compared}: sensitive (above median + 3 MAD)."
    return f"{said}, {compared}."


def _median(ordered: list[float]) -> float:
    n = len(ordered)
    return 0.5 * (ordered[(n - 1) // 2] + ordered[n // 2])
