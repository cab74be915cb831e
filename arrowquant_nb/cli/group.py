"""The group of subcommands: the order in which they are listed, and errors as messages with an exit code.

The package loads its parts on first use, inside a subcommand: what fails while they load ends in a message too.
"""

import errno
from typing import Any

import click

from arrowquant_nb.errors import ArrowQuantError

__all__ = ["Commands"]


class _Interrupted(click.ClickException):
    """Ctrl-C, reported as shells expect it."""

    exit_code = 130


class Commands(click.Group):
    """The subcommands, in the order of use, with our own errors turned into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return their names as they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; what a user can mend, and Ctrl-C, end in a message."""
        try:
            return super().invoke(ctx)
        except ArrowQuantError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.filename is None or error.errno == errno.EPIPE:
                raise
            raise click.ClickException(f"{error.filename}: {error.strerror}") from error
        except KeyboardInterrupt as interrupt:
            message = "interrupted; what is committed stays: run the same command again to resume"
            raise _Interrupted(message) from interrupt
