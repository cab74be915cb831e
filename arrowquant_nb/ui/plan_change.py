"""What the last change of the settings was, in words, and what it did to the predicted size. Pure functions."""

from enum import Enum
from typing import Final

from arrowquant_nb.config import DiffusionQuantConfig, field_facts
from arrowquant_nb.results import Plan
from arrowquant_nb.ui.field_control import value_words

__all__ = ["change_words", "setting_words"]

_NAMED: Final = 2
"""More settings than this are counted, not named."""
_PROFILE: Final = "deployment_profile"


def setting_words(before: DiffusionQuantConfig, after: DiffusionQuantConfig) -> str:
    """Say which settings differ; "" where none does.

    A profile stands for all that it fills in, and a bit width for what the profile fills in otherwise with it.

    Examples
    --------
    >>> setting_words(DiffusionQuantConfig.from_profile("edge"), DiffusionQuantConfig.from_profile("local"))
    'Edge to Local'
    >>> setting_words(DiffusionQuantConfig(), DiffusionQuantConfig(bit_width=8))
    'Bits INT4 to INT8'
    """
    old, new = before.to_dict(), after.to_dict()
    if old[_PROFILE] != new[_PROFILE]:
        return " to ".join(str(values[_PROFILE]).capitalize() for values in (old, new))
    facts = field_facts()
    changed = [name for name, value in new.items() if name in facts and old[name] != value]
    if "bit_width" in changed:
        filled = DiffusionQuantConfig.from_profile(str(new[_PROFILE]), bit_width=new["bit_width"]).to_dict()
        changed = [name for name in changed if name == "bit_width" or new[name] != filled[name]]
    if len(changed) > _NAMED:
        return f"{len(changed)} settings"
    return ", ".join(_one(name, str(facts[name]["title"]), old[name], new[name]) for name in changed)


def change_words(what: str, before: Plan | None, after: Plan) -> str:
    """Say what a change did to the size; "" where nothing was changed or there is nothing to compare with."""
    if before is None or before.model != after.model or not what:
        return ""
    difference = after.size_mb - before.size_mb
    if abs(difference) < 5e-4:
        return f"{what}, no change in size"
    return f"{what}, {'+' if difference > 0 else '-'}{abs(difference):.3f} MB"


def _one(name: str, title: str, old: object, new: object) -> str:
    title = title.partition(" (")[0]
    if isinstance(new, bool):
        return f"{title} {'on' if new else 'off'}"
    if isinstance(new, list | tuple | dict):
        return title
    return f"{title} {_spelled(name, old)} to {_spelled(name, new)}"


def _spelled(name: str, value: object) -> str:
    return value_words(name, value.value if isinstance(value, Enum) else value)
