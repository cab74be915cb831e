"""Statistics of all inputs of a model, call by call; layers that are given the same rows share them.

Knows neither how a model is run nor what its layers are: it is told names and rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

from arrowquant_nb.calibration.accumulation import InputAccumulator, layer_captures
from arrowquant_nb.calibration.statistics import MAX_STEPS
from arrowquant_nb.errors import MetadataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrowquant_nb.calibration.scratch import Scratch
    from arrowquant_nb.calibration.statistics import CalibrationSettings, LayerCapture

FIT: Final = 0
HELD_OUT: Final = 1


class InputStatistics:
    """What every input of a model looks like, timestep by timestep.

    A layer that was not announced by `expect` is learned when it is first observed: it shares the input of a layer
    that was first observed in the same call and was given the same rows.

    Parameters
    ----------
    settings : rows to keep, timesteps, seed.
    scratch : where the statistics are kept; in memory unless given.
    share : whether layers with the same rows share their statistics.
    """

    def __init__(self, settings: CalibrationSettings, scratch: Scratch | None = None, *, share: bool = True) -> None:
        self._settings = settings
        self._scratch = scratch
        self._share = share
        self._leaders: dict[str, str] = {}
        self._inputs: dict[str, InputAccumulator] = {}
        self._followed: set[str] = set()
        self._times: set[int] = set()
        self._which, self._number = FIT, 0
        self._new: dict[bytes, str] = {}
        self._digests: dict[str, list[bytes]] = {}
        self._seen: dict[str, int] = {}

    @property
    def names(self) -> frozenset[str]:
        """Layers that were announced or observed."""
        return frozenset(self._leaders)

    def expect(self, name: str, leader: str, columns: int, low: float, high: float) -> None:
        """Announce a layer, the layer whose input it shares (itself for none), its width and the range of a look."""
        self._leaders[name] = leader
        if leader != name:
            self._followed.add(leader)
            return
        few, held_out = self._settings.rows_per_step, self._settings.held_out_rows_per_step
        self._inputs[name] = InputAccumulator(name, columns, low, high, few, held_out, self._scratch)

    def begin_call(self, which: int, number: int) -> None:
        """Start the network call `number` of those that build the statistics (FIT) or are held out (HELD_OUT)."""
        self._which, self._number = which, number
        self._new.clear()
        self._digests.clear()
        self._seen.clear()

    def observe(self, name: str, time: int, rows: NDArray[np.float32], weight: float) -> None:
        """Add rows (n, columns) that a layer is given in this call; `weight` is its share among calls of its timestep.

        Raises
        ------
        MetadataError
            A timestep out of range, or a layer no longer shares the input that it shared at first.

        """
        self._check_time(time)
        occurrence = self._seen[name] = self._seen.get(name, -1) + 1
        digest = self._digest(name, rows)
        if name not in self._leaders:
            leader = self._new.setdefault(digest, name) if self._share else name
            self.expect(name, leader, rows.shape[1], float(rows.min()), float(rows.max()))
        leader = self._leaders[name]
        if leader != name:
            expected = self._digests.get(leader, [])[occurrence : occurrence + 1]
            if expected != [digest]:
                raise MetadataError(
                    f"calibration: {name!r} had the input of {leader!r} at first, but not at timestep {time}; "
                    "calibrate the two in separate calls, or a torch model with share_inputs=False"
                )
            return
        key = [self._settings.seed, self._which, time, self._number, *([occurrence] if occurrence else [])]
        keys = np.random.default_rng(key).random(len(rows))
        if self._which == FIT:
            self._inputs[name].add(time, rows, weight, keys)
        else:
            self._inputs[name].hold_out(time, rows, keys)

    def finish(self, leave_out: frozenset[str] = frozenset()) -> dict[str, LayerCapture]:
        """Return the captures of all layers but those to leave out, those that share an input side by side."""
        found: dict[str, LayerCapture] = {}
        for leader, accumulator in self._inputs.items():
            names = [n for n, first in self._leaders.items() if first == leader and n not in leave_out]
            if names:
                found |= layer_captures(accumulator, names)
        return found

    def unsteady(self) -> frozenset[str]:
        """Return the layers that were not used at every timestep that was observed."""
        return frozenset(n for n, leader in self._leaders.items() if not self._inputs[leader].covers(self._times))

    def _check_time(self, time: int) -> None:
        self._times.add(time)
        if len(self._times) > MAX_STEPS or not 0 <= time < self._settings.n_timesteps:
            raise MetadataError(
                f"calibration: timestep {time} is not in 0..{self._settings.n_timesteps - 1}, or is one of more than "
                f"{MAX_STEPS} different ones; set n_timesteps to the model's training timesteps"
            )

    def _digest(self, name: str, rows: NDArray[np.float32]) -> bytes:
        """Return the digest of rows that others may share, b"" where none can."""
        known = self._leaders.get(name)
        # In the call that a layer is learned in, another one may still turn out to share its input.
        may_share = known != name or name in self._followed or name in self._digests
        if not (self._share and may_share):
            return b""
        digest = digest_of(rows)
        self._digests.setdefault(name, []).append(digest)
        return digest


def digest_of(rows: NDArray[np.float32]) -> bytes:
    """Return the xxh3-128 of rows and their width."""
    return xxhash.xxh3_128(rows.data, seed=rows.shape[1]).digest()
