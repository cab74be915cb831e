"""What is done to one layer's input: equalized, centred, rounded; and the same as values to report and to store.

Holds the outcome of a choice; knows nothing of how it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arrowquant_nb.layer_reports import InputReport
from arrowquant_nb.quantizers.spatial_metadata import SpatialQuantMetadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.activation_fit import FittedInput
    from arrowquant_nb.quantizers.equalization import Equalization
    from arrowquant_nb.quantizers.layer_inputs import LayerInputs
    from arrowquant_nb.quantizers.metrics import OutputStatistics

__all__ = ["NO_TREATMENT", "InputTreatment"]


@dataclass(frozen=True, eq=False)
class InputTreatment:
    """What is done to a layer's input, and what that gains at the layer's output."""

    equalization: Equalization | None = None
    """Divisors of the channels; None: not equalized."""
    fitted: FittedInput | None = None
    """Grids per time group and what precedes them; None: the input stays float."""
    equalization_gain_db: float = 0.0
    """Error without equalization over that with it, on calibration data; measured whichever was kept."""
    smoothing_gain_db: float = 0.0
    """Likewise of taking the channels' means off."""

    def report(self, inputs: LayerInputs, output: OutputStatistics | None) -> InputReport | None:
        """Return what a layer's report says of its input, None where nothing is done and nothing was tried.

        `output` was measured with the rounded input.
        """
        fitted, rounding, folded = self.fitted, inputs.rounding, inputs.folded
        scaled = folded or self.equalization
        if fitted is None and scaled is None and self.equalization_gain_db == 0:
            return None
        centred = fitted is not None and fitted.transform.means is not None
        return InputReport(
            mode="float" if fitted is None else ("static" if len(fitted.table.groups) == 1 else "time groups"),
            bit_width=16 if fitted is None or rounding is None else rounding.quantizer.bit_width,
            n_groups=0 if fitted is None else len(fitted.table.groups),
            table_gain_db=0.0 if fitted is None else fitted.table.gain_db,
            alpha=None if scaled is None else scaled.alpha,
            folded=folded is not None,
            equalization_gain_db=self.equalization_gain_db if folded is None else folded.gain_db,
            centred=centred,
            smoothing_gain_db=self.smoothing_gain_db,
            output_sqnr="not_measured" if output is None else output.sqnr_db,
            worst_output_sqnr="not_measured" if output is None else output.worst_sqnr_db,
        )

    def facts(self, layer: str, inputs: LayerInputs) -> dict[str, Any]:
        """Return what is stored with the layer: "spatial", "time_aware" and "activation_stats", JSON values.

        Equalization scales stand in a column of their own, so the metadata hold those only that are folded.
        """
        facts: dict[str, Any] = {}
        rounding, folded = inputs.rounding, inputs.folded
        means = None if self.fitted is None else self.fitted.transform.means
        scaled = folded or self.equalization
        if scaled is not None or means is not None:
            stored = () if folded is None else _plain(folded.scales)
            facts["spatial"] = SpatialQuantMetadata(
                enabled=True,
                channel_equalization=scaled is not None,
                activation_smoothing=means is not None,
                equalization_scales={} if scaled is None else {layer: stored},
                activation_means={} if means is None else {layer: tuple(map(_plain, means))},
                alphas={} if scaled is None or scaled.alpha is None else {layer: scaled.alpha},
                folded=() if folded is None else (layer,),
            ).to_dict()
        if self.fitted is not None and rounding is not None:
            facts["time_aware"] = rounding.quantizer.metadata([self.fitted.table]).to_dict()
            facts["activation_stats"] = {
                "times": rounding.times.tolist(),
                "low": list(_plain(rounding.channel_min.min(1))),
                "high": list(_plain(rounding.channel_max.max(1))),
            }
        return facts


def _plain(values: NDArray[np.float32]) -> tuple[float, ...]:
    """Return float32 values as the numbers with the fewest digits that read back to them."""
    return tuple(float(str(value)) for value in values)


NO_TREATMENT = InputTreatment()
