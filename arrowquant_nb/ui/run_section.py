"""Where the output goes and whether a run may begin: the folder, what stands there, Run, and why Run is off."""

from __future__ import annotations

from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import ipywidgets as widgets

from arrowquant_nb.config import field_facts
from arrowquant_nb.ui.output_folder import OutputFolder, free_name
from arrowquant_nb.ui.spoken import said
from arrowquant_nb.ui.text_button import text_button

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from arrowquant_nb.results import Plan

__all__ = ["RunSection"]

_TAKE_UP: Final = "Show it with its settings"
_TOOLTIP: Final = "Show what this run did; its model and settings enter the form"


class RunSection:
    """Chooses the output folder; a suggested name follows the plan until the user types one.

    Parameters
    ----------
    on_run : called when Run is pressed.
    on_output : called when another folder is named.
    on_take_up : called with the folder of an earlier run that is to be shown and gone on with.

    Attributes
    ----------
    output, another, run : the folder's name, the button that takes a free one, and Run.
    words, why_off, status : what stands in the folder, why Run is off, the status line.
    take_up, earlier : the button for the run in the folder, and those for unfinished ones beside it.
    row, widget : the controls in one row; everything but the status line.
    """

    def __init__(
        self, on_run: Callable[[], None], on_output: Callable[[], None], on_take_up: Callable[[Path], None]
    ) -> None:
        self._on_take_up = on_take_up
        self._folder = OutputFolder()
        self._suggested = ""
        self.output = widgets.Text(description="Output", layout={"width": "360px"})
        self.output.style.description_width = "48px"
        self.words = widgets.HTML()
        self.another = text_button("Use another name", "A folder that is not there yet", self._rename, shown=False)
        self.run = widgets.Button(description="Run", tooltip="Quantize the model", layout={"width": "auto"})
        self.run.add_class("aq-run")
        self.why_off = widgets.HTML()
        self.status = widgets.HTML(said("Ready. Nothing has been written."))
        self.row = widgets.HBox([self.output, self.another, self.run, self.why_off])
        self.take_up = text_button(_TAKE_UP, _TOOLTIP, lambda: on_take_up(self.folder), shown=False)
        self.earlier = widgets.HBox([], layout={"display": "none"})
        self._stands = widgets.HBox([self.words, self.take_up])
        for row in (self.row, self.earlier, self._stands):
            row.add_class("aq-row")
        self.widget = widgets.VBox([self.row, self._stands, self.earlier])
        self.run.on_click(lambda _: on_run())
        self.output.observe(lambda _: on_output(), names="value")

    @property
    def folder(self) -> Path:
        """Where the output goes."""
        return Path(self.output.value)

    @property
    def busy(self) -> bool:
        """Whether a run was writing the folder when it was last looked at."""
        return self._folder.busy

    def choose(self, folder: Path) -> None:
        """Name a folder as if it had been typed."""
        self._suggested = ""
        self.output.value = str(folder)

    def suggest(self, plan: Plan) -> None:
        """Write a name for the plan's output, unless the user has typed one."""
        given = bool(self.output.value) and self.output.value != self._suggested
        self._suggested = f"{Path(plan.model).stem}-int{plan.bit_width}"
        if not given:
            self.output.value = self._suggested

    def look(self, plan: Plan | None) -> None:
        """Look at the folder as it is now, and say what stands there."""
        layers = [] if plan is None else [row.name for row in plan.rows if row.action == "quantized"]
        self._folder = OutputFolder.look(self.output.value, "" if plan is None else plan.model, layers)
        kind = "" if self._folder.usable else "class='aq-error' role='alert'"
        self.words.value = f"<span {kind}>{escape(self._folder.words)}</span>" if self._folder.words else ""
        self.another.layout.display = "" if self._folder.words and self.output.value.strip() else "none"
        self._stands.layout.display = "" if self._folder.words else "none"
        self.take_up.layout.display = "" if self._folder.logged else "none"
        self.run.description = "Resume" if self._folder.resumable else "Run"

    def list_unfinished(self, runs: Sequence[Path]) -> None:
        """Offer unfinished runs that are not the one in the folder."""
        others = [folder for folder in runs if folder != self.folder]
        names = [box.description for box in self.earlier.children[1:]]
        if names != [str(folder) for folder in others]:
            buttons = [text_button(str(run), _TOOLTIP, partial(self._on_take_up, run)) for run in others]
            self.earlier.children = (widgets.HTML("Unfinished here:"), *buttons) if buttons else ()
            self.earlier.layout.display = "" if buttons else "none"

    def allow(self, plan: Plan | None, complaints: Mapping[str, str], *, running: bool) -> None:
        """Switch Run on or off, and say why it is off.

        Parameters
        ----------
        plan : None while no model is open.
        complaints : field -> what is wrong with its value.
        """
        why = ""
        if complaints:
            n = len(complaints)
            verb = "setting needs" if n == 1 else "settings need"
            why = f"Run is off: {n} {verb} attention ({_titles(complaints)})."
        elif plan is None:
            why = "Run is off: no model is open."
        elif not self._folder.usable:
            why = "Run is off: choose another output."
        self.run.disabled = bool(why) or running
        self.why_off.value = f"<span>{escape(why)}</span>" if why else ""

    def _rename(self) -> None:
        self.output.value = free_name(self.output.value)


def _titles(complaints: Mapping[str, str]) -> str:
    facts = field_facts()
    return ", ".join(str(facts[name]["title"]).partition(" (")[0] for name in complaints)
