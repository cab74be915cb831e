"""Choosing among the ways of quantizing a layer by measured error; the first tile of a large layer decides for all.

Asks the quantizers to carry the ways out; knows nothing of gates, files or formats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from arrowquant_nb.quantizers.matrix_job import MatrixJob
from arrowquant_nb.quantizers.metrics import OutputStatistics
from arrowquant_nb.quantizers.trials import measure_output, measure_rounded_output, try_recipe

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from arrowquant_nb.core.recipes import Recipe
    from arrowquant_nb.core.task import Control, LayerTask
    from arrowquant_nb.layer_reports import InputReport
    from arrowquant_nb.quantizers.input_treatment import InputTreatment
    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.quantizers.trials import LayerInputs


class Choice:
    """The ways that are still open for a layer, and what was seen of those that were tried.

    Attributes
    ----------
    recipes : open ways; one once the first tile is done.
    rotation : none, hadamard, or auto while the first tile has not decided.
    compared : label and error of every way tried, in order; with calibration the error at the layer's output.
    note : what happened on the way, "" for nothing worth saying.
    treatment : what is done to the layer's input; None while the first tile has not decided.
    rounded : figures of the output with rounded inputs, one per tile; empty where inputs stay float.
    """

    def __init__(self, recipes: list[Recipe], rotation: str) -> None:
        self.recipes = recipes
        self.rotation = rotation
        self.compared: list[tuple[str, float]] = []
        self.note = ""
        self.treatment: InputTreatment | None = None
        self.rounded: list[OutputStatistics] = []

    @property
    def recipe(self) -> Recipe:
        """The way that is taken."""
        return self.recipes[0]

    def quantize(
        self, task: LayerTask, weight: NDArray[Any], row_start: int, inputs: LayerInputs | None, control: Control
    ) -> QuantizedTensor | None:
        """Quantize some rows in every open way and keep the one with the least error; None when cancelled."""
        best: QuantizedTensor | None = None
        least = math.inf
        kept = self.recipes[0]
        first = not self.compared
        treatment: InputTreatment | None = None
        for recipe in self.recipes:
            trial = try_recipe(
                matrix_job(task, recipe, weight, row_start, self.rotation),
                inputs,
                compensated=recipe.compensated,
                n_threads=control.n_threads,
                cancelled=control.cancelled,
                treatment=self.treatment,
            )
            if trial is None:
                return None
            if first:
                self.compared.append((recipe.label, trial.objective))
            if best is None or trial.objective < least:
                best, least, kept, treatment = trial.tensor, trial.objective, recipe, trial.treatment
                self.note = trial.note or self.note
        self.recipes = [kept]
        if self.treatment is None:
            self.treatment = treatment
        if best is not None:
            # A reader undoes one rotation for all tiles.
            self.rotation = "none" if best.rotation_seed is None else "hadamard"
        return best

    def measure(
        self, weight: NDArray[Any], tensor: QuantizedTensor, inputs: LayerInputs, n_threads: int
    ) -> OutputStatistics:
        """Measure a tile's output on held-out inputs: with float ones, which is returned, and with rounded ones."""
        if self.treatment is not None:
            rounded = measure_rounded_output(weight, tensor, inputs, self.treatment, n_threads)
            if rounded is not None:
                self.rounded.append(rounded)
        return measure_output(weight, tensor, inputs, n_threads)

    def input_report(self, inputs: LayerInputs | None) -> InputReport | None:
        """Say what is done to the layer's input, None for nothing."""
        if self.treatment is None or inputs is None:
            return None
        output = OutputStatistics.combine(self.rounded) if self.rounded else None
        return self.treatment.report(inputs, output)

    def facts(self, task: LayerTask, inputs: LayerInputs | None) -> dict[str, Any]:
        """Return what is stored with the layer of its inputs."""
        if self.treatment is None or inputs is None:
            return {}
        return self.treatment.facts(task.name, inputs)

    def explain(self, calibrated: bool) -> str:
        """Say why this way was taken, "" where there was no other."""
        sentences = []
        if len(self.compared) > 1:
            kept = self.recipe.label
            mine = dict(self.compared)[kept]
            where = "at the layer's output" if calibrated else "in the weights"
            others = [f"{label} by {_ahead(error, mine)}" for label, error in self.compared if label != kept]
            sentences.append(f"{kept} beats {' and '.join(others)} {where} at no more bytes.")
        if self.note:
            sentences.append(f"{self.note[0].upper()}{self.note[1:]}.")
        return " ".join(sentences)


def _ahead(error: float, least: float) -> str:
    return f"{10 * math.log10(error / least):.2f} dB" if least > 0 and error < math.inf else "all there is"


def matrix_job(task: LayerTask, recipe: Recipe, weight: NDArray[Any], row_start: int, rotation: str) -> MatrixJob:
    """Order for some rows of a layer in one way."""
    return MatrixJob(
        weight=weight,
        name=task.name,
        shape=weight.shape,
        bit_width=recipe.bit_width,
        group_size=recipe.group_size,
        method=recipe.method,
        gain_correction=task.gain_correction,
        importance=None,
        row_start=row_start,
        file=task.file,
        rotation=rotation or task.rotation,
        seed=task.seed,
        low_rank=task.low_rank,
        scale_format=recipe.scale_format,
    )
