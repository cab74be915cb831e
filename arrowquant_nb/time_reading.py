"""How a model's call says at which time it is: a value that calibration finds and that is stored with the model.

Whoever runs the model later reads the time as calibration did. Knows no call and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from arrowquant_nb.errors import MetadataError
from arrowquant_nb.json_form import JsonForm

__all__ = ["UNKNOWN_READING", "TimeReading", "is_time_range"]


def is_time_range(ends: object) -> bool:
    """Tell whether something is two different finite numbers, the clean and the noisy end."""
    return (
        isinstance(ends, (tuple, list))
        and len(ends) == 2
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in ends)
        and ends[0] != ends[1]
    )


@dataclass(frozen=True)
class TimeReading(JsonForm):
    """What must be known to normalise a model's time to 0 (clean) .. 1 (noise)."""

    time_range: tuple[float, float] | None = None
    """Values of the timestep that stand for the clean and the noisy end; None where nothing was called."""
    mask_token_id: int | None = None
    """Of a masked language model, whose time is the share of masked tokens; None where a timestep is given."""

    def __post_init__(self) -> None:
        """Refuse a range without length, and what is no token."""
        if self.time_range is not None and not is_time_range(self.time_range):
            raise MetadataError(f"time_range {self.time_range!r} is not two different finite numbers")
        token = self.mask_token_id
        if token is not None and (type(token) is not int or token < 0):
            raise MetadataError(f"mask_token_id {token!r} is not an integer >= 0")


UNKNOWN_READING = TimeReading()
"""Where nothing was called, as with the bundled models, whose steps are training timesteps."""
