"""What subcommands print on stdout: a result, as text or as JSON, or with `--show-config` the settings."""

import errno
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from arrowquant_nb.cli.options import load_config
from arrowquant_nb.config import DiffusionQuantConfig

__all__ = ["json_option", "print_result", "quiet_option", "shows_config"]

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout and nothing else."
)
quiet_option = click.option(
    "--quiet", is_flag=True, help="Write nothing to stderr but errors: no progress bar, no remarks."
)


def print_result(result: Any, as_json: bool) -> None:
    """Print a result, or anything JSON-ready, on stdout."""
    data = result.to_dict() if as_json and hasattr(result, "to_dict") else result
    text = json.dumps(data, indent=1) if as_json else str(result)
    try:
        click.echo(_encoded(text))
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read it has seen enough
            raise
        message = f"the result cannot be printed ({error.strerror}); what it speaks of is done"
        raise click.ClickException(message) from error


def _encoded(text: str) -> bytes:
    """Return a text as stdout takes it: a name that is no text in its bytes, a letter it does not have escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")


def shows_config(command: Callable[..., None]) -> Callable[..., None]:
    """Join the settings into `config`; with `--show-config` print them instead of running the command."""

    @functools.wraps(command)
    def wrapped(yaml: str | None, show_config: bool, as_json: bool, **rest: Any) -> None:
        settings = {name: rest.pop(name) for name in DiffusionQuantConfig.model_fields}
        config = load_config(yaml, settings)
        if not show_config:
            command(config=config, as_json=as_json, **rest)
        elif as_json:
            print_result({"config": config.to_dict(), "sources": dict(config.sources)}, as_json=True)
        else:
            print_result(config, as_json=False)

    return wrapped
