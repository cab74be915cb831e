"""What a run read, in the words of its command. Holds no folder, because results and model cards are passed on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arrowquant_nb.config.command import option_words
from arrowquant_nb.json_form import JsonForm

if TYPE_CHECKING:
    from arrowquant_nb.config import DiffusionQuantConfig

__all__ = ["RunSource"]


@dataclass(frozen=True)
class RunSource(JsonForm):
    """The float model of a run and what was chosen beside it.

    Attributes
    ----------
    model : name of its folder or file, or of a bundled sample.
    component, variant : part of a pipeline, variant of its files; None where there is no choice.
    calibration : name of the calibration file that was given, "none" where it was switched off; None for the default.
    requantize : the model had been quantized already.
    """

    model: str
    component: str | None = None
    variant: str | None = None
    calibration: str | None = None
    requantize: bool = False

    def command(self, config: DiffusionQuantConfig) -> str:
        """Return the command that does the same run again where model and calibration file lie.

        Examples
        --------
        >>> from arrowquant_nb.config import DiffusionQuantConfig
        >>> RunSource("flux", "vae", calibration="my prompts.parquet").command(DiffusionQuantConfig(seed=3))
        "arrowquant quantize flux OUTPUT --component vae --calibration 'my prompts.parquet' --profile local --seed 3"
        """
        words = ["arrowquant", "quantize", self.model, "OUTPUT"]
        for name in ("component", "variant", "calibration"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", value]
        words += ["--requantize"] if self.requantize else []
        return " ".join(shlex.quote(word) for word in (*words, *option_words(config)))
