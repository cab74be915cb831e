"""Options that several commands share: one per setting, written from the setting's own facts, and the progress bar.

Adding a field to the configuration adds its option here without a line of code. Knows nothing of models.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click
from tqdm import tqdm

from arrowquant_nb.config import DiffusionQuantConfig, available_fields, field_facts
from arrowquant_nb.config.profiles import PROFILES
from arrowquant_nb.config.sources import from_text

__all__ = ["config_options", "load_config", "on_terminal", "progress_bar", "source_options", "warnings_to_stderr"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Repeatable options are spelled in the singular; the field's own name works too.
_SINGULAR: Final = {
    "deployment_profile": "profile",
    "sensitive_layer_names": "sensitive-layer-name",
    "sensitive_layer_patterns": "sensitive-layer-pattern",
    "layer_bit_widths": "layer-bit-width",
    "layer_methods": "layer-method",
}
_METAVARS: Final = {"integer": "N", "number": "X", "word": "WORD", "words": "TEXT"}
_TABLES: Final = {"layer_bit_widths": ("NAME=BITS", "8"), "layer_methods": ("NAME=METHOD", "mse")}
"""What an entry of a table is spelled like, and a value for the example."""


def config_options(command: _Command) -> _Command:
    """Give a command `--config FILE`, `--show-config` and an option for every setting."""
    offered = available_fields()
    for name, facts in reversed(field_facts().items()):
        command = click.option(*_spellings(name, facts), name, **_behaviour(name, facts, offered))(command)
    command = click.option(
        "--show-config", is_flag=True, help="Print every setting and where its value came from, then stop."
    )(command)
    return click.option("--config", "yaml", metavar="FILE", help="YAML file of settings; options go before it.")(
        command
    )


def source_options(command: _Command) -> _Command:
    """Give a command `--component` and `--variant`, which part of a source it takes."""
    variant = click.option(
        "--variant", metavar="NAME", help="Variant of the files, such as fp16. [default: none, else the only one]"
    )
    component = click.option(
        "--component", metavar="NAME", help="Component of a pipeline, such as unet. [default: the denoiser]"
    )
    return component(variant(command))


def load_config(yaml: str | None, settings: Mapping[str, Any]) -> DiffusionQuantConfig:
    """Join profile, YAML file, environment and the options that were given.

    Raises
    ------
    ConfigurationError
        Names the option, variable or line of the file.
    click.BadParameter
        `--layer-bit-width` is not NAME=BITS, `--layer-method` not NAME=METHOD, or one names a layer twice.
    """
    explicit: dict[str, object] = {}
    for name, facts in field_facts().items():
        given = settings.get(name)
        if given is None or given == ():
            continue
        if facts["kind"] == "table":
            explicit[name] = _table(name, given)
        elif facts["kind"] in ("words", "flag"):
            explicit[name] = given
        else:
            explicit[name] = from_text(str(facts["kind"]), given)
    return DiffusionQuantConfig.load_from(yaml, os.environ, explicit, lambda name: f"option {_option(name)}")


def on_terminal() -> bool:
    """Tell whether stderr is a terminal; a job of a scheduler may have none at all."""
    return bool(sys.stderr and sys.stderr.isatty())


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Draw a bar on stderr and yield the callback that moves it; silent when `quiet` or stderr is no terminal."""
    off = quiet or not on_terminal()
    layout = "{percentage:3.0f}%|{bar:24}| {elapsed} {desc}"
    with tqdm(total=100, disable=off, bar_format=layout, file=sys.stderr, dynamic_ncols=True) as bar:

        def move(message: str, fraction: float) -> None:
            bar.set_description_str(message, refresh=False)
            bar.update(100 * fraction - bar.n)

        yield move


@contextmanager
def warnings_to_stderr(*, quiet: bool) -> Iterator[None]:
    """Print what the package logs as a warning, a line each; nothing when `quiet`."""
    logger = logging.getLogger("arrowquant_nb")
    handler = logging.NullHandler() if quiet else logging.StreamHandler(sys.stderr)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _option(name: str) -> str:
    return "--" + _SINGULAR.get(name, name).replace("_", "-")


def _spellings(name: str, facts: Mapping[str, object]) -> list[str]:
    long = "--" + name.replace("_", "-")
    if facts["kind"] == "flag":
        return [f"{long}/--no-{name.replace('_', '-')}"]
    return [_option(name)] if _option(name) == long else [_option(name), long]


def _behaviour(name: str, facts: Mapping[str, object], offered: tuple[str, ...]) -> dict[str, Any]:
    behaviour: dict[str, Any] = {"default": None, "help": _help(name, facts), "hidden": name not in offered}
    if facts["kind"] != "flag":
        spelled = _TABLES[name][0] if facts["kind"] == "table" else _METAVARS[str(facts["kind"])]
        behaviour |= {"metavar": spelled, "multiple": facts["kind"] in ("words", "table")}
    return behaviour


def _help(name: str, facts: Mapping[str, object]) -> str:
    """Say what the setting does, its unit and range, and what the profiles fill in."""
    limits = (
        "" if facts["kind"] == "flag" else f" ({'; '.join(str(facts[key]) for key in ('unit', 'range') if facts[key])})"
    )
    defaults = {profile: PROFILES[profile][name] for profile in ("edge", "local", "cloud")}
    if name == "deployment_profile":
        shown = "default: local"
    elif facts["kind"] in ("words", "table"):
        shown = "repeatable"
    elif len(set(defaults.values())) == 1:
        shown = f"default: {_word(defaults['local'])}"
    else:
        shown = ", ".join(f"{profile} {_word(value)}" for profile, value in defaults.items())
    return f"{str(facts['description']).rstrip('.')}{limits}. [{shown}]"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _table(setting: str, pairs: tuple[str, ...]) -> dict[str, object]:
    spelled, example = _TABLES[setting]
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")
        if not equals or not name:
            raise click.BadParameter(
                f"{pair!r} is not {spelled}, such as 'proj_out.weight={example}'", param_hint=_option(setting)
            )
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice; keep one of the two", param_hint=_option(setting))
        found[name] = from_text("integer", value)
    return found
