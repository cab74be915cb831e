"""What the loop is told of a layer's inputs: the captured statistics, the equalization to try, and how to round.

Reads the weights of layers that share an input, which the loop itself sees one after the other. Knows nothing of
which way is taken in the end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowquant_nb.core.batches import rows_at_once
from arrowquant_nb.quantizers.equalization import ALPHAS
from arrowquant_nb.quantizers.layer_inputs import InputRounding, LayerInputs
from arrowquant_nb.quantizers.spatial import SpatialQuantizer
from arrowquant_nb.quantizers.time_aware import TimeAwareQuantizer
from arrowquant_nb.quantizers.trials import DB_PER_BIT
from arrowquant_nb.runs.input_strategy import ROUNDED_ROLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.calibration.statistics import Calibration
    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.quantizers.equalization import Equalization
    from arrowquant_nb.runs.calibrating import RunCalibration
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint

SEARCHED_ALPHAS: Final = ALPHAS[::2]
"""Half of DiTAS' 21: the error is flat around its minimum, and every exponent costs a quantization."""
SCALE_BITS: Final = 16


class LayerInputSearch:
    """Answers what is known of a layer's inputs; called with a task.

    Parameters
    ----------
    calibration : the statistics of a run, or that there are none.
    checkpoint : the model, for the weights of layers that share an input.
    tasks, config : of the run.
    spatial : whether channels may be evened out.
    """

    def __init__(
        self,
        calibration: RunCalibration,
        checkpoint: Checkpoint,
        tasks: Sequence[LayerTask],
        config: DiffusionQuantConfig,
        *,
        spatial: bool,
    ) -> None:
        self._calibration = calibration
        self._checkpoint = checkpoint
        self._tasks = {t.name: t for t in tasks if not t.kept and t.role in ROUNDED_ROLES}
        self._config = config
        self._spatial = spatial
        self.n_time_groups = config.num_time_groups if config.enable_time_aware else 1
        self.folded: Mapping[str, Equalization] = {}
        """What the inputs of some layers come divided by, in the weights before them; set when that is decided."""
        self._roundings: dict[str, InputRounding] = {}
        self._divided: dict[str, InputRounding] = {}
        self._searched: dict[tuple[Any, ...], Equalization] = {}

    @property
    def key(self) -> str:
        """What of all this decides a stored byte; "" without calibration."""
        if not self._calibration.hash:
            return ""
        spatial = ", spatial" if self._spatial else ""
        return f"{self._calibration.hash}, {self.n_time_groups} time groups{spatial}"

    def __call__(self, task: LayerTask) -> LayerInputs | None:
        """Return what is known of a layer's inputs, None without calibration."""
        known = self._known(task)
        statistics = self._calibration.statistics
        if known is None or statistics is None or task.name not in self._tasks or known.parts:
            return known  # channel groups would each need scales and grids of their own
        rounding = self._rounding(task, statistics)
        if task.name in self.folded:
            found = known.divided(self.folded[task.name])
            return found if rounding is None else replace(found, rounding=self._divided_rounding(task, rounding))
        ways = self._worthwhile(task, self.equalization(task))
        return replace(known, equalizations=ways, rounding=rounding)

    def float_inputs(self, task: LayerTask) -> LayerInputs | None:
        """Return what is known of a layer's inputs where they are neither rounded nor equalized beside the codes."""
        known = self._known(task)
        return known.divided(self.folded[task.name]) if known is not None and task.name in self.folded else known

    def _known(self, task: LayerTask) -> LayerInputs | None:
        known = self._calibration.inputs(task.name, task.rows, task.columns, self.n_time_groups)
        # A tile of a layer's rows would meet the inputs of some of its channel groups, and not know which.
        return None if known is not None and known.parts and rows_at_once(task) < task.rows else known

    def read_by_all(self, layers: Sequence[str]) -> bool:
        """Tell whether these layers are quantized and are all that read one observed input."""
        statistics = self._calibration.statistics
        if not self._spatial or statistics is None or any(n not in statistics or n not in self._tasks for n in layers):
            return False
        return set(statistics.inputs[statistics[layers[0]].input_name]) == set(layers)

    def equalization(self, task: LayerTask) -> Equalization | None:
        """Return the scales with the least error that direct grids find for all layers of an input; None: no search."""
        statistics = self._calibration.statistics
        if not self._spatial or statistics is None or task.name not in self._tasks:
            return None
        return self._search(task, statistics, self._rounding(task, statistics))

    def _divided_rounding(self, task: LayerTask, rounding: InputRounding) -> InputRounding:
        """Return the grids of an input that comes divided, one and the same for all layers that read it."""
        statistics = self._calibration.statistics
        key = "" if statistics is None else statistics[task.name].input_name
        if key not in self._divided:
            self._divided[key] = rounding.divided(self.folded[task.name].scales)
        return self._divided[key]

    def _rounding(self, task: LayerTask, statistics: Calibration) -> InputRounding | None:
        if task.activation_bit_width not in (4, 8):
            return None
        capture = statistics[task.name]
        if capture.input_name not in self._roundings:
            quantizer = TimeAwareQuantizer(
                task.activation_bit_width, self.n_time_groups, statistics.settings.n_timesteps,
                reading=statistics.time_reading,
            )  # fmt: skip
            self._roundings[capture.input_name] = InputRounding(
                quantizer, capture.times, capture.channel_min, capture.channel_max, capture.rows, self._spatial
            )
        return self._roundings[capture.input_name]

    def _search(self, task: LayerTask, statistics: Calibration, rounding: InputRounding | None) -> Equalization:
        """Search scales for all layers of an input together, so that it needs to be divided and rounded only once."""
        capture = statistics[task.name]
        sharing = [name for name in statistics.inputs[capture.input_name] if name in self._tasks]
        key = (capture.input_name, task.bit_width, task.group_size, task.method, task.scale_format)
        if key not in self._searched:
            quantizer = SpatialQuantizer(
                task.bit_width, task.group_size, task.method, task.gain_correction,
                None if rounding is None else task.activation_bit_width,
                n_threads=self._config.num_threads, scale_format=task.scale_format,
            )  # fmt: skip
            self._searched[key] = quantizer.channel_equalization(
                {name: self._weight(name) for name in sharing},
                capture.channel_min[::-1],  # earliest steps first
                capture.channel_max[::-1],
                capture.rows[::-1],
                None if rounding is None else rounding.plain_groups,
                capture.hessian,
                SEARCHED_ALPHAS,
            )
        return self._searched[key]

    @staticmethod
    def _worthwhile(task: LayerTask, found: Equalization | None) -> tuple[Equalization, ...]:
        """Return scales that gain more than the bits they take."""
        worth = found is not None and found.alpha is not None and found.gain_db > DB_PER_BIT * SCALE_BITS / task.rows
        return (found,) if worth and found is not None else ()

    def _weight(self, name: str) -> NDArray[np.float32]:
        task = self._tasks[name]
        return self._checkpoint.read_rows(name, 0, task.rows).astype(np.float32)
