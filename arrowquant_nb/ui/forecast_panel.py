"""What a run is expected to cost, and the size slider: measured once on a sample of every layer, then solved at once.

Everything here is a forecast and says so. Measuring runs beside the kernel and starts on demand: it takes
seconds.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

import ipywidgets as widgets

from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.errors import ArrowQuantError
from arrowquant_nb.ui.text_button import text_button

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.forecasts import Forecast, SizeAllocation
    from arrowquant_nb.runs.model_choice import ModelChoice
    from arrowquant_nb.runs.size_budget import SizeBudget
    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["ForecastPanel", "allocation_words", "forecast_words"]

_HINT: Final = "<span class='aq-quiet'>forecast first</span>"


class ForecastPanel:
    """A button, a slider for the size limit, and their words.

    Parameters
    ----------
    worker : measures.
    subject : returns the model and the settings, None while they are refused.
    on_limit : called with the size limit in MB that was chosen, None for no limit.

    Attributes
    ----------
    slider, hint, lift : what belongs beside the limit's own field; to be placed there.
    widget : the button and the words.
    """

    def __init__(
        self,
        worker: Worker,
        subject: Callable[[], tuple[ModelChoice, DiffusionQuantConfig | None]],
        on_limit: Callable[[float | None], None],
    ) -> None:
        self._worker, self._subject, self._on_limit = worker, subject, on_limit
        self._budget: SizeBudget | None = None
        self._measured: tuple[ModelChoice, str] | None = None
        self._limit: float | None = None
        self._without_limit = ""
        self._quiet = False
        self.button = widgets.Button(
            description="Forecast quality", tooltip="Quantize a sample of every layer; takes seconds",
            layout={"width": "auto"},
        )  # fmt: skip
        self.button.on_click(lambda _: self.measure())
        self.slider = widgets.FloatSlider(
            min=0.0, max=1.0, step=0.001, disabled=True, readout=False, layout={"width": "140px"}
        )
        self.slider.tooltip = "Size limit in MB; bits and group size of each layer follow at once"
        self.hint = widgets.HTML(_HINT)
        self.lift = text_button("No limit", "Take the size limit away", lambda: on_limit(None), shown=False)
        self.words = widgets.HTML()
        self.slider.observe(lambda _: self._solved(), names="value")
        row = widgets.HBox([self.button])
        row.add_class("aq-row")
        self.widget = widgets.VBox([row, self.words])

    def measure(self) -> None:
        """Measure the model under the settings, unless that has been done or is being done."""
        choice, config = self._subject()
        if config is None or not choice.model or self.button.disabled:
            return
        self.button.disabled = True
        free = config.replace(target_model_size_mb=None) if config.target_model_size_mb is not None else config
        key = (choice, _key(config))
        self.words.value = "<span role='status'>Measuring a sample of every layer...</span>"

        def tell(_: str, fraction: float) -> None:
            text = f"<span role='status'>Measuring a sample of every layer... {100 * fraction:.0f} %</span>"
            self._worker.post(lambda: setattr(self.words, "value", text))

        def work(_: threading.Event) -> tuple[SizeBudget, Forecast]:
            quantizer = ArrowQuantV2(free)
            model, parts = choice.model, choice.parts
            return quantizer.budget(model, progress_callback=tell, **parts), quantizer.forecast(model, **parts)

        def done(outcome: Outcome[tuple[SizeBudget, Forecast]]) -> None:
            self.button.disabled = False
            if outcome.result is None:
                self._refuse(outcome.error)
                return
            self._budget, forecast = outcome.result
            self._measured = key
            self._offer(self._budget.smallest_mb, self._budget.largest_mb, forecast.size_mb.value)
            self._without_limit = f"<b>Forecast</b> {escape(forecast_words(forecast))}"
            self._place(self._limit)

        self._worker.start("forecast", work, done)

    def follow(self, limit: float | None) -> None:
        """Follow the limit that the settings hold, and drop a forecast that was made for others."""
        choice, config = self._subject()
        before, self._limit = self._limit, limit
        self.lift.layout.display = "none" if limit is None else ""
        if config is None:
            return
        if self._measured is not None and self._measured != (choice, _key(config)):
            self._measured, self._budget = None, None
            self.slider.disabled, self.hint.value = True, _HINT
            self.words.value = "<span class='aq-quiet'>The forecast was of another model or other settings.</span>"
        elif self._budget is not None and limit != before:
            self._place(limit)

    def _place(self, limit: float | None) -> None:
        """Move the slider to a limit that was typed, or lifted, and say what follows from it."""
        if limit is None:
            self.words.value = self._without_limit
            return
        self._quiet = True
        self.slider.value = min(max(limit, self.slider.min), self.slider.max)
        self._quiet = False
        self._say(limit)

    def _offer(self, smallest: float, largest: float, now: float) -> None:
        self._quiet = True
        self.slider.max = max(largest, smallest + 0.001)
        self.slider.min = smallest
        self.slider.step = max(0.001, round((largest - smallest) / 400, 3))
        _, config = self._subject()
        limit = None if config is None else config.target_model_size_mb
        self.slider.value = min(max(now if limit is None else limit, smallest), self.slider.max)
        self.slider.disabled = False
        self.hint.value = f"<span class='aq-quiet'>{smallest:.2f} to {self.slider.max:.2f} MB</span>"
        self._quiet = False

    def _solved(self) -> None:
        """Choose the layers' widths anew for the slider's size, and take that as the limit."""
        if self._quiet or self._budget is None:
            return
        limit = float(f"{max(self.slider.value, self._budget.smallest_mb):.6f}")
        found = self._say(max(limit, self._budget.smallest_mb))
        if found is not None:
            self._on_limit(max(limit, found.size_mb))

    def _say(self, limit: float) -> SizeAllocation | None:
        """Solve for a limit and say what it would choose; None where nothing fits it."""
        if self._budget is None:
            return None
        try:
            found = self._budget.solve(limit)
        except ArrowQuantError as error:
            self._refuse(error)
            return None
        self.words.value = f"<b>Forecast</b> {escape(allocation_words(found))}"
        return found

    def _refuse(self, error: BaseException | None) -> None:
        self.words.value = f"<span class='aq-error' role='alert'>{escape(str(error))}</span>"


def forecast_words(forecast: Forecast) -> str:
    """Return quality and size with their ranges, in one sentence."""
    weights = f"weights {forecast.weight_sqnr_db.words('.1f')} dB"
    network = forecast.network_sqnr_db
    quality = weights if network is None else f"network output {network.words('.1f')} dB, {weights}"
    return f"{quality}, size {forecast.size_mb.words('.3f')} MB. From a sample of every layer's rows."


def allocation_words(found: SizeAllocation) -> str:
    """Return what a size limit would choose, in one sentence."""
    rows = dict(found.headline())
    missed = f" {len(found.missed_gates)} layers would miss their gate." if found.missed_gates else ""
    return f"at {found.size_mb:.3f} MB: {rows['layers']}; network output {rows['network output']}.{missed}"


def _key(config: DiffusionQuantConfig) -> str:
    """Return what a measurement depends on: all settings but the limit itself."""
    values: dict[str, Any] = config.to_dict() | {"target_model_size_mb": None}
    return repr(sorted(values.items()))
