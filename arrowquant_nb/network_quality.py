"""What a run measured of the whole: the network's output, the layers that were promoted for it, and the size it kept.

Frozen values with a JSON form. Knows nothing of how the figures came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arrowquant_nb.json_form import JsonForm

__all__ = ["NetworkQuality", "Promotion", "SizeOutcome"]


@dataclass(frozen=True)
class Promotion(JsonForm):
    """One layer that got more bits because the network's output missed its floor.

    Attributes
    ----------
    layer, from_bit_width, to_bit_width : what was changed; 16 = kept.
    added_nbytes : what that stores in addition.
    sqnr_db : the network's output before it, in dB.
    sentence : why this layer.
    """

    layer: str
    from_bit_width: int
    to_bit_width: int
    added_nbytes: int
    sqnr_db: float
    sentence: str


@dataclass(frozen=True)
class NetworkQuality(JsonForm):
    """The network's output with all stored weights, along float trajectories that no Hessian has seen.

    Attributes
    ----------
    sqnr_db : signal over error in dB, teacher-forced.
    n, steps, seed : trajectories, network calls of each, seed.
    least_db : `min_network_sqnr_db`; None = reported only.
    passed : whether the floor was reached; True without one.
    predicted_db : sum of what the layers cost alone, in dB; "not_measured" where that was not asked for.
    additivity : measured noise over the predicted one: 1 = noises of layers add up exactly; or "not_measured".
    promotions : layers that got more bits on the way, in order; three rounds at most.
    """

    sqnr_db: float
    n: int
    steps: int
    seed: int
    least_db: float | None = None
    passed: bool = True
    predicted_db: float | str = "not_measured"
    additivity: float | str = "not_measured"
    promotions: tuple[Promotion, ...] = ()

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"promotions": Promotion}

    def words(self) -> str:
        """Return the figures in one line."""
        said = f"{self.sqnr_db:.1f} dB over {self.n} float trajectories of {self.steps} calls each, seed {self.seed}"
        if self.least_db is not None:
            said += f"; {self.least_db:g} dB asked for"
        if isinstance(self.additivity, float) and isinstance(self.predicted_db, float):
            said += f"; {self.predicted_db:.1f} dB predicted (noise {self.additivity:.2f} times the layers' sum)"
        if self.promotions:
            said += "; more bits for " + ", ".join(
                f"{p.layer} (INT{p.from_bit_width} to {'kept' if p.to_bit_width == 16 else f'INT{p.to_bit_width}'})"
                for p in self.promotions
            )
        return said


@dataclass(frozen=True)
class SizeOutcome(JsonForm):
    """How a size limit was kept.

    Attributes
    ----------
    target_mb : the limit in 10^6 bytes.
    payload_mb : what is stored: codes, scales, minima, low-rank branches and kept tensors; never above the limit.
    smallest_mb, largest_mb : what the model could have been.
    missed_gates : layers that miss their gate because the limit leaves no bytes for it.
    method : "greedy" or "dynamic programming", whichever found the widths.
    """

    target_mb: float
    payload_mb: float
    smallest_mb: float
    largest_mb: float
    missed_gates: tuple[str, ...]
    method: str

    def words(self) -> str:
        """Return the figures in one line."""
        missed = f"; gates missed by {', '.join(self.missed_gates)}" if self.missed_gates else ""
        return (
            f"{self.payload_mb:.3f} MB of payload, limit {self.target_mb:g} MB (reachable: {self.smallest_mb:.3f} to "
            f"{self.largest_mb:.3f} MB, by {self.method}){missed}"
        )
