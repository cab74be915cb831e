"""Settings in short: what differs from their profile, and the same as options of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from arrowquant_nb.config.settings import DiffusionQuantConfig

__all__ = ["changed_settings", "option_words"]

_PROFILE: Final = "deployment_profile"
_OF_A_MACHINE: Final = "num_threads"
"""Changes no byte of a model, so that a command for elsewhere leaves it out."""


def changed_settings(config: DiffusionQuantConfig) -> dict[str, object]:
    """Return a config's profile and what differs from it, as JSON values: `from_dict` gives an equal config."""
    values = config.to_dict()
    profile = type(config).from_profile(str(config.deployment_profile)).to_dict()
    changed = {_PROFILE: profile[_PROFILE]} | {name: v for name, v in values.items() if v != profile[name]}
    if type(config).from_dict(changed) == config:
        return changed
    # A profile's scales give way to what else is said, so that its own ones have to be said as well.
    return changed | {name: values[name] for name in ("scale_format", "group_size")}


def option_words(config: DiffusionQuantConfig) -> list[str]:
    """Return the words of a command line that give equal settings, apart from the number of threads.

    Examples
    --------
    >>> from arrowquant_nb.config import DiffusionQuantConfig
    >>> option_words(DiffusionQuantConfig.from_profile("edge", gain_correction=False, layer_bit_widths={"head": 8}))
    ['--profile', 'edge', '--no-gain-correction', '--layer-bit-widths', 'head=8']
    """
    changed = changed_settings(config)
    words = ["--profile", str(changed.pop(_PROFILE))]
    changed.pop(_OF_A_MACHINE, None)
    for name, value in changed.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += [word for key, item in value.items() for word in (option, f"{key}={item}")]
        elif isinstance(value, list):
            words += [word for item in value for word in (option, str(item))]
        else:
            words += [option, str(value)]
    return words
