"""One control for one setting: which widget suits a field's metadata, and its value there and back, exactly.

Numbers and lists are typed as text: what is typed is never cut or rounded, and what is wrong with it is said beside it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import ipywidgets as widgets

from arrowquant_nb.config.sources import from_text

__all__ = ["FieldControl", "control_for", "value_words"]

# A step of the sliders; the text beside them takes any value.
_ACCURACY_STEP: Final = 0.005
_SLIDERS: Final[Mapping[str, tuple[float, float, float]]] = {
    "num_time_groups": (1, 40, 1),
    "min_accuracy": (0.8, 1.0, _ACCURACY_STEP),
}
"""Fields that have a slider too: its ends and step."""
_OPEN: Final[Mapping[str, str]] = {
    "modality": "detected", "activation_bit_width": "weights only", "min_output_sqnr_db": "gate table",
    "min_network_sqnr_db": "reported only", "target_model_size_mb": "no limit",
}  # fmt: skip
"""What leaving a field open means, in words."""
_LEFT_OPEN: Final = ""
"""Stands for None among the options of a chooser: a chooser whose value is None shows nothing."""
_EXAMPLES: Final[Mapping[str, str]] = {
    "layer_bit_widths": "transformer_blocks.0.ff.net.2: 8", "layer_methods": "*.ff.net.2: mse",
}  # fmt: skip
"""What a line of a table looks like."""
_TITLES: Final[Mapping[str, str]] = {"edge": "Edge: smallest", "local": "Local: balanced", "cloud": "Cloud: closest"}


class FieldControl:
    """A widget that shows the value of one field.

    Attributes
    ----------
    widget : what stands in the form.
    main : the widget that takes the focus and the tooltip.
    """

    def __init__(self, main: widgets.DOMWidget, read: Callable[[], object], write: Callable[[Any], None]) -> None:
        self.main = main
        self.widget: widgets.Widget = main
        self._read = read
        self._write = write

    @property
    def value(self) -> object:
        """The field's value as `DiffusionQuantConfig` takes it; text where what is typed spells none."""
        return self._read()

    @value.setter
    def value(self, value: object) -> None:
        self._write(value)

    def observe(self, callback: Callable[[], None]) -> None:
        """Call `callback()` whenever the user, or code, changes the value."""
        self.main.observe(lambda _: callback(), names="value")


def control_for(name: str, facts: Mapping[str, Any]) -> FieldControl:
    """Return the control that suits a field.

    Parameters
    ----------
    name : the field.
    facts : its entry in `field_facts()`.
    """
    kind = facts["kind"]
    if kind == "flag":
        box = widgets.Checkbox(indent=False, layout={"width": "auto"})
        return FieldControl(box, lambda: box.value, lambda value: setattr(box, "value", bool(value)))
    if facts["choices"] is not None:
        return _choice(name, facts)
    if kind in ("words", "table"):
        return _lines(str(kind), _EXAMPLES.get(name, "one entry a line"))
    return _number(name, facts)


def _choice(name: str, facts: Mapping[str, Any]) -> FieldControl:
    options = [(value_words(name, value), _LEFT_OPEN if value is None else value) for value in facts["choices"]]
    kind = widgets.ToggleButtons if name in ("deployment_profile", "bit_width") else widgets.Dropdown
    chooser = kind(options=options, layout={"width": "auto"})
    if kind is widgets.ToggleButtons:
        chooser.style.button_width = "auto"
        chooser.add_class("aq-choices")

    def write(value: object) -> None:
        if value not in [v for _, v in chooser.options]:
            chooser.options = [*chooser.options, (value_words(name, value), value)]
        chooser.value = value

    return FieldControl(
        chooser,
        lambda: None if chooser.value == _LEFT_OPEN else chooser.value,
        lambda value: write(_LEFT_OPEN if value is None else _plain(value)),
    )


def value_words(name: str, value: object) -> str:
    """Return a field's value as its control words it."""
    if value is None:
        return _OPEN.get(name, "none")
    if name == "deployment_profile":
        return _TITLES.get(str(value), str(value))
    return f"INT{value}" if name == "bit_width" else str(value)


def _number(name: str, facts: Mapping[str, Any]) -> FieldControl:
    box = widgets.Text(placeholder=_OPEN.get(name, ""), layout={"width": "110px"})

    def read() -> object:
        text = box.value.strip()
        return None if not text and facts["optional"] else from_text(str(facts["kind"]), box.value)

    def write(value: object) -> None:
        box.value = "" if value is None else f"{value}"

    control = FieldControl(box, read, write)
    if name in _SLIDERS:
        low, high, step = _SLIDERS[name]
        control.widget = widgets.HBox([_slider(box, control, low, high, step), box])
    return control


def _slider(box: widgets.Text, control: FieldControl, low: float, high: float, step: float) -> widgets.Widget:
    """Return a slider that follows the text where it can, and writes it when it is moved."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    slider = kind(min=low, max=high, step=step, readout=False, layout={"width": "190px"})
    following = [False]

    def follow(_: object) -> None:
        value = control.value
        if isinstance(value, int | float) and not isinstance(value, bool):
            following[0] = True
            slider.value = min(max(value, low), high)
            following[0] = False

    def moved(change: Mapping[str, Any]) -> None:
        if not following[0]:
            box.value = f"{round(change['new'], 6):g}"

    box.observe(follow, names="value")
    slider.observe(moved, names="value")
    return slider


def _lines(kind: str, example: str) -> FieldControl:
    area = widgets.Textarea(placeholder=example, rows=2, layout={"width": "340px"})

    def read() -> object:
        lines = [line for line in area.value.splitlines() if line.strip()]
        return [_word(line) for line in lines] if kind == "words" else _table(lines)

    def write(value: Any) -> None:
        if kind == "words":
            area.value = "\n".join(_line(word) for word in value)
        else:
            area.value = "\n".join(f"{_line(name)}: {_plain(entry)}" for name, entry in value.items())

    return FieldControl(area, read, write)


def _line(word: str) -> str:
    """Write an entry down; in JSON's quotes where a line could not hold it as it is."""
    plain = word.strip() == word and word.isprintable() and word and not word.startswith('"')
    return word if plain else json.dumps(word)


def _word(line: str) -> str:
    if line.strip().startswith('"'):
        try:
            value = json.loads(line)
        except ValueError:
            return line.strip()
        return value if isinstance(value, str) else line.strip()
    return line.strip()


def _table(lines: list[str]) -> object:
    """Return a mapping; the text itself of a line that is not `name: value`, for the field's own check to refuse."""
    found: dict[str, object] = {}
    for line in lines:
        name, colon, value = line.rpartition(":")
        if not colon or _word(name) in found:
            return line
        found[_word(name)] = from_text("integer", value) if not value.strip().isalpha() else value.strip()
    return found


def _plain(value: object) -> object:
    """Return the word of an enumeration's member."""
    return getattr(value, "value", value)
