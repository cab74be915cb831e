"""All settings of a run as a form, built from the fields' own metadata: what a field is called, and what it may be.

The form and `DiffusionQuantConfig` go into each other exactly. A value that is refused is said beside its field; the
form then has no config. Knows nothing of models, plans or runs.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import Any, Final

import ipywidgets as widgets

from arrowquant_nb.config import DiffusionQuantConfig, available_fields, field_facts
from arrowquant_nb.config.sources import shown
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.ui.field_control import FieldControl, control_for

__all__ = ["ADVANCED_GROUPS", "Form"]

ADVANCED_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Method": ("method", "scale_format", "rotation", "low_rank", "gain_correction", "activation_bit_width"),
    "Structure": ("modality", "enable_time_aware", "enable_spatial", "fold_equalization"),
    "Layers and gates": (
        "skip_sensitive_layers", "sensitive_layer_names", "sensitive_layer_patterns", "layer_bit_widths",
        "layer_methods", "min_output_sqnr_db", "min_network_sqnr_db", "fail_fast",
    ),
    "Machine": ("num_threads", "seed"),
}  # fmt: skip
_PROFILE: Final = "deployment_profile"
_COMPLAINT: Final = re.compile(r"argument: (\w+)")
_GROUP_FOR_K: Final = 16


class Form:
    """The settings as widgets.

    Attributes
    ----------
    controls : field -> its control, every field that is available today.
    basic, advanced : the two parts to place; `advanced` folds.
    config : the settings; None while a value is refused.
    complaints : field -> what is wrong with its value.
    """

    def __init__(self, config: DiffusionQuantConfig | None = None) -> None:
        self._facts = field_facts()
        self.controls: dict[str, FieldControl] = {n: control_for(n, self._facts[n]) for n in available_fields()}
        self._messages = {name: widgets.HTML() for name in self.controls}
        self._marks = {name: widgets.HTML() for name in self.controls}
        self._rows: dict[str, widgets.HBox] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._quiet = False
        self.config: DiffusionQuantConfig | None = None
        self.complaints: dict[str, str] = {}
        self._profile = "local"
        self.changes = widgets.HTML()
        self.reset = widgets.Button(description="Reset", layout={"width": "auto"})
        self.reset.on_click(lambda _: self.set_config(DiffusionQuantConfig.from_profile(self._profile)))
        basic = [name for name in self.controls if self._facts[name]["group"] == "basic"]
        self.basic = widgets.VBox([self._row(name) for name in basic])
        self.advanced = self._folded(set(self.controls) - set(basic))
        for name, control in self.controls.items():
            control.observe(partial(self._changed, name))
        self.set_config(config or DiffusionQuantConfig())

    def set_config(self, config: DiffusionQuantConfig) -> None:
        """Show these settings."""
        self._quiet = True
        try:
            self._profile = str(config.deployment_profile)
            for name, control in self.controls.items():
                control.value = getattr(config, name)
        finally:
            self._quiet = False
        self._check()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback()` after every change, valid or not."""
        self._callbacks.append(callback)

    def put_beside(self, name: str, *parts: widgets.Widget) -> None:
        """Put more widgets into a field's row, behind its control."""
        row = self._rows[name]
        row.children = (*row.children[:2], *parts, *row.children[2:])

    def label_widths(self, sizes: Mapping[int, str]) -> None:
        """Write a predicted size on each width's button."""
        chooser = self.controls["bit_width"].main
        value, self._quiet = chooser.value, True
        chooser.options = [(f"INT{bits}  {sizes[bits]}" if bits in sizes else f"INT{bits}", bits) for bits in (2, 4, 8)]
        chooser.value = value
        self._quiet = False

    @property
    def changed(self) -> tuple[str, ...]:
        """Fields that differ from the profile."""
        default = DiffusionQuantConfig.from_profile(self._profile)
        values = self._values()
        return tuple(n for n, value in values.items() if n != _PROFILE and value != _plain(getattr(default, n)))

    # -- building ----------------------------------------------------------------------------------------------------

    def _row(self, name: str) -> widgets.HBox:
        facts = self._facts[name]
        unit = str(facts["unit"]).partition(" (")[0]
        title = str(facts["title"])
        label = f"{title} ({unit})" if unit and unit.lower() not in title.lower() and "(" not in title else title
        caption = widgets.HTML(f"<label>{escape(label)}</label>", layout={"width": "190px"})
        caption.add_class("aq-caption")
        self._messages[name].add_class("aq-message")
        row = widgets.HBox([caption, self.controls[name].widget, self._marks[name], self._messages[name]])
        row.add_class("aq-row")
        self._rows[name] = row
        return row

    def _folded(self, names: set[str]) -> widgets.Accordion:
        named = {name for group in ADVANCED_GROUPS.values() for name in group}
        groups = {**ADVANCED_GROUPS, "More": tuple(sorted(names - named))}
        parts = []
        for title, members in groups.items():
            rows = [self._row(name) for name in members if name in names]
            if rows:
                parts += [widgets.HTML(f"<b>{escape(title)}</b>"), *rows]
        folded = widgets.Accordion([widgets.VBox(parts)], selected_index=None)
        folded.add_class("aq-fold")
        return folded

    # -- values ------------------------------------------------------------------------------------------------------

    def _values(self) -> dict[str, Any]:
        return {name: _plain(control.value) for name, control in self.controls.items()}

    def _changed(self, name: str) -> None:
        if self._quiet:
            return
        if name == _PROFILE:
            self._refill()
        self._check(adapt=True)

    def _refill(self) -> None:
        """Give what the old profile had filled in the new one's values; what the user changed stays."""
        old = DiffusionQuantConfig.from_profile(self._profile)
        self._profile = str(self.controls[_PROFILE].value)
        new = DiffusionQuantConfig.from_profile(self._profile)
        values = self._values()
        self._quiet = True
        for name, control in self.controls.items():
            if name != _PROFILE and values[name] == _plain(getattr(old, name)):
                control.value = getattr(new, name)
        self._quiet = False

    def _check(self, *, adapt: bool = False) -> None:
        """Build the config, or say beside each field what is refused; then tell whoever listens."""
        self._offer_group_sizes()
        values = self._values()
        changed = self.changed
        try:
            self.config = self._built(values, changed, adapt=adapt)
            changed = self.changed
            self.complaints = {}
        except ConfigurationError as error:
            self.config = None
            self.complaints = self._worded(str(error), values)
        self._show(changed)
        for callback in self._callbacks:
            callback()

    def _built(self, values: dict[str, Any], changed: tuple[str, ...], *, adapt: bool) -> DiffusionQuantConfig:
        """Build the config from what was changed.

        What a profile fills in may depend on that: with `adapt` the form then shows what it fills in, otherwise the
        values stay as they are shown.
        """
        config = DiffusionQuantConfig.from_profile(self._profile, **{n: values[n] for n in changed})
        found = config.to_dict()
        other = {name for name, value in values.items() if found[name] != value}
        if not other:
            return config
        if not adapt:
            return DiffusionQuantConfig.from_profile(self._profile, **{**found, **values})
        self._quiet = True
        for name in other:
            self.controls[name].value = found[name]
        self._quiet = False
        return config

    def _worded(self, message: str, values: Mapping[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in re.split(r"; (?=argument: \w+)", message):
            match = _COMPLAINT.match(part)
            name = match.group(1) if match and match.group(1) in self.controls else "deployment_profile"
            facts = self._facts[name]
            if "is refused; it must be" in part and facts["kind"] not in ("words", "table"):
                given = values[name]
                spelled = given if isinstance(given, str) and given else "empty" if given == "" else shown(given)
                found[name] = f"{facts['title']} is {spelled}; it must be {facts['range']}."
            else:
                found[name] = part.removeprefix("argument: ")
        return found

    def _show(self, changed: tuple[str, ...]) -> None:
        default = DiffusionQuantConfig.from_profile(self._profile)
        for name, control in self.controls.items():
            complaint = self.complaints.get(name, "")
            self._messages[name].value = f"<span role='alert'>{escape(complaint)}</span>" if complaint else ""
            outlined = "aq-refused" in control.main._dom_classes  # noqa: SLF001 - there is no public list of classes
            if complaint and not outlined:
                control.main.add_class("aq-refused")
            elif outlined and not complaint:
                control.main.remove_class("aq-refused")
            self._marks[name].value = "<span class='aq-changed'>&#9679; changed</span>" if name in changed else ""
            control.main.tooltip = self._help(name, default)
        n = len(changed)
        self.changes.value = f"changed: {n} {'change' if n == 1 else 'changes'}" if n else "as the profile sets it"
        self.reset.description = f"Reset to {self._profile.capitalize()}"
        self.reset.disabled = not n
        folded = [name for name in changed if self._facts[name]["group"] != "basic"]
        n_folded = sum(self._facts[name]["group"] != "basic" for name in self.controls)
        self.advanced.set_title(0, f"Advanced settings ({n_folded}; {len(folded)} changed)")

    def _help(self, name: str, default: DiffusionQuantConfig) -> str:
        facts = self._facts[name]
        value = _plain(getattr(default, name))
        spelled = "none" if value is None else str(value)
        return f"{facts['description']} Allowed: {facts['range']}. {self._profile.capitalize()} sets {spelled}."

    def _offer_group_sizes(self) -> None:
        """List a group size of 16 only where the scale format has it; what is chosen already stays to be seen."""
        chooser, scale_format = self.controls["group_size"].main, self.controls.get("scale_format")
        with_k = scale_format is not None and scale_format.value == "k"
        sizes = [n for n in self._facts["group_size"]["choices"] if n != _GROUP_FOR_K or with_k]  # type: ignore[attr-defined]
        sizes += [chooser.value] if chooser.value is not None and chooser.value not in sizes else []
        wanted = [(str(n), n) for n in sorted(sizes)]
        if list(chooser.options) != wanted:
            value, quiet = chooser.value, self._quiet
            self._quiet = True
            chooser.options = wanted
            chooser.value = value
            self._quiet = quiet


def _plain(value: object) -> object:
    """Return a value as JSON types: words for enumerations, lists for tuples, dictionaries for mappings."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return getattr(value, "value", value)
