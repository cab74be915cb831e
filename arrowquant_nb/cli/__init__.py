"""The `arrowquant` command: `commands.py` has the subcommands, `options.py` one option per field of the settings.

`calibrate_command.py` finds what `arrowquant calibrate` runs.
"""

from arrowquant_nb.cli.commands import main

__all__ = ["main"]
