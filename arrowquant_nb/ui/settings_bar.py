"""Settings in and out: load and save YAML, copy the run as Python or as a command."""

from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import ArrowQuantError
from arrowquant_nb.runs.model_choice import ModelChoice
from arrowquant_nb.ui.page_bridge import PageBridge
from arrowquant_nb.ui.snippets import papermill_command, python_code
from arrowquant_nb.ui.text_button import text_button

__all__ = ["SettingsBar"]


class SettingsBar:
    """Four buttons, the name of a settings file, and the text that was copied.

    Parameters
    ----------
    settings : returns model, output and config; the config is None while a value is refused.
    on_load : called with the settings that were read.
    bridge : asks the page to copy a text.
    """

    def __init__(
        self,
        settings: Callable[[], tuple[ModelChoice, str, DiffusionQuantConfig | None]],
        on_load: Callable[[DiffusionQuantConfig], None],
        bridge: PageBridge,
    ) -> None:
        self._settings, self._on_load, self._bridge = settings, on_load, bridge
        self.file = widgets.Text("settings.yaml", description="Settings file", layout={"width": "290px"})
        self.file.style.description_width = "80px"
        self.load = text_button("Load YAML", "Read all settings from the file", self._load)
        self.save = text_button("Save YAML", "Write all settings to the file", self._save)
        self.python = text_button("Copy as Python", "The same run as a script", self._copy_python)
        self.papermill = text_button("Copy as papermill command", "The same run as a notebook job", self._copy_command)
        self.words = widgets.HTML()
        self.code = widgets.Textarea(rows=5, layout={"width": "100%", "display": "none"})
        row = widgets.HBox([self.file, self.load, self.save, self.python, self.papermill, self.words])
        row.add_class("aq-row")
        self.widget = widgets.VBox([row, self.code])
        bridge.on_copied(self._copied)

    def _say(self, text: str, *, alert: bool = False) -> None:
        kind = "class='aq-error' role='alert'" if alert else "role='status'"
        self.words.value = f"<span {kind}>{escape(text)}</span>"

    def _load(self) -> None:
        try:
            config = DiffusionQuantConfig.from_yaml(self.file.value)
        except ArrowQuantError as error:
            self._say(f"{error} Nothing was changed.", alert=True)
            return
        self._on_load(config)
        self._say(f"Loaded {self.file.value}.")

    def _save(self) -> None:
        if self._write():
            self._say(f"Saved {self.file.value}.")

    def _write(self) -> bool:
        _, _, config = self._settings()
        if config is None:
            self._say("A setting needs attention first. Nothing was written.", alert=True)
            return False
        try:
            config.to_yaml(self.file.value)
        except ArrowQuantError as error:
            self._say(str(error), alert=True)
            return False
        return True

    def _copy_python(self) -> None:
        choice, output, config = self._settings()
        if config is None:
            self._say("A setting needs attention first.", alert=True)
            return
        self._copy(python_code(choice, output, config))

    def _copy_command(self) -> None:
        choice, output, _ = self._settings()
        if self._write():
            self._copy(papermill_command(choice, output, self.file.value))

    def _copy(self, text: str) -> None:
        self.code.value = text
        self.code.layout.display = ""
        self._say("Select the text below and press Ctrl+C.")
        self._bridge.copy_text(text)

    def _copied(self, done: bool) -> None:
        if done:
            self._say("Copied.")
