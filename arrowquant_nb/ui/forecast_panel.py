"""What a run is expected to cost, and the size slider: measured once on a sample of every layer, then solved at once.

Everything here is a forecast and says so. Measuring runs beside the kernel and starts on demand: it takes
seconds.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.errors import ArrowQuantError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.forecasts import Forecast, SizeAllocation
    from arrowquant_nb.runs.size_budget import SizeBudget
    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["ForecastPanel", "allocation_words", "forecast_words"]


class ForecastPanel:
    """A button, a slider and their words.

    Parameters
    ----------
    worker : measures.
    subject : returns the model and the settings, None while they are refused.
    on_limit : called with the size limit in MB that was chosen, None for no limit.
    """

    def __init__(
        self,
        worker: Worker,
        subject: Callable[[], tuple[str, DiffusionQuantConfig | None]],
        on_limit: Callable[[float | None], None],
    ) -> None:
        self._worker, self._subject, self._on_limit = worker, subject, on_limit
        self._budget: SizeBudget | None = None
        self._measured: tuple[str, str] | None = None
        self._quiet = False
        self.button = widgets.Button(
            description="Forecast quality", tooltip="Quantize a sample of every layer; takes seconds",
            layout={"width": "auto"},
        )  # fmt: skip
        self.button.on_click(lambda _: self.measure())
        self.limited = widgets.Checkbox(description="Size limit (MB)", indent=False, layout={"width": "auto"})
        self.slider = widgets.FloatSlider(
            min=0.0, max=1.0, step=0.001, readout_format=".3f", disabled=True, readout=False, layout={"width": "280px"}
        )
        self.words = widgets.HTML()
        self.limited.observe(lambda _: self._switched(), names="value")
        self.slider.observe(lambda _: self._solved(), names="value")
        row = widgets.HBox([self.button, self.limited, self.slider])
        row.add_class("aq-row")
        self.widget = widgets.VBox([row, self.words])

    def measure(self) -> None:
        """Measure the model under the settings, unless that has been done or is being done."""
        model, config = self._subject()
        if config is None or not model or self.button.disabled:
            return
        self.button.disabled = True
        free = config.replace(target_model_size_mb=None) if config.target_model_size_mb is not None else config
        key = (model, _key(config))
        self.words.value = "<span role='status'>Measuring a sample of every layer...</span>"

        def tell(_: str, fraction: float) -> None:
            text = f"<span role='status'>Measuring a sample of every layer... {100 * fraction:.0f} %</span>"
            self._worker.post(lambda: setattr(self.words, "value", text))

        def work(_: threading.Event) -> tuple[SizeBudget, Forecast]:
            quantizer = ArrowQuantV2(free)
            return quantizer.budget(model, progress_callback=tell), quantizer.forecast(model)

        def done(outcome: Outcome[tuple[SizeBudget, Forecast]]) -> None:
            self.button.disabled = False
            if outcome.result is None:
                self._refuse(outcome.error)
                return
            self._budget, forecast = outcome.result
            self._measured = key
            self._offer(self._budget.smallest_mb, self._budget.largest_mb, forecast.size_mb.value)
            self.words.value = f"<b>Forecast</b> {escape(forecast_words(forecast))}"
            if self.limited.value:
                self._solved()

        self._worker.start("forecast", work, done)

    def follow(self, limit: float | None) -> None:
        """Show the limit that the settings hold, and drop a forecast that was made for others."""
        model, config = self._subject()
        self._quiet = True
        self.limited.value = limit is not None
        if limit is not None and self._budget is not None:
            self.slider.value = min(max(limit, self.slider.min), self.slider.max)
        self._quiet = False
        if self._measured is not None and config is not None and self._measured != (model, _key(config)):
            self._measured, self._budget = None, None
            self.slider.disabled = True
            self.words.value = "<span class='aq-quiet'>The settings have changed since the forecast.</span>"

    def _offer(self, smallest: float, largest: float, now: float) -> None:
        self._quiet = True
        self.slider.max = max(largest, smallest + 0.001)
        self.slider.min = smallest
        self.slider.step = max(0.001, round((largest - smallest) / 400, 3))
        _, config = self._subject()
        limit = None if config is None else config.target_model_size_mb
        self.slider.value = min(max(now if limit is None else limit, smallest), self.slider.max)
        self.slider.disabled, self.slider.readout = False, True
        self._quiet = False

    def _switched(self) -> None:
        if self._quiet:
            return
        if not self.limited.value:
            self._on_limit(None)
        elif self._budget is None:
            self.measure()
        else:
            self._solved()

    def _solved(self) -> None:
        """Choose the layers' widths anew for the slider's size."""
        if self._quiet or self._budget is None:
            return
        limit = float(f"{max(self.slider.value, self._budget.smallest_mb):.6f}")
        try:
            found = self._budget.solve(max(limit, self._budget.smallest_mb))
        except ArrowQuantError as error:
            self._refuse(error)
            return
        self.words.value = f"<b>Forecast</b> {escape(allocation_words(found))}"
        if self.limited.value:
            self._on_limit(max(limit, found.size_mb))

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
