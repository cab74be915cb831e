"""The `arrowquant` command: each subcommand is a few lines around one call of the Python interface.

Results go to stdout, as text or with `--json` as JSON and nothing else; progress and errors go to stderr.
Exit codes: 0 done, 1 failed (with a message that names what to change), 2 wrong usage, 130 interrupted.
"""

import click

import arrowquant_nb as aq
from arrowquant_nb.cli.export_commands import dequantize, export
from arrowquant_nb.cli.group import Commands
from arrowquant_nb.cli.model_commands import calibrate, inspect, plan, quantize, reproduce, validate
from arrowquant_nb.cli.notebook_commands import run, run_batch
from arrowquant_nb.cli.output import json_option, print_result

__all__ = ["main"]


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"arrowquant_nb {aq.__version__}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def main() -> None:
    """Quantize diffusion models to INT2, INT4 or INT8.

    A MODEL is a diffusers or transformers folder, a .safetensors file, or the name of a bundled sample
    (digits-dit, docs-mlm, plucks-dit, stdlib-mlm).
    """


@click.command(short_help="Say what is installed and loaded.")
@json_option
def info(as_json: bool) -> None:
    """Say what is installed: versions, compiled or not, instruction set, threads."""
    facts = aq.build_info()
    width = max(len(name) for name in facts)
    print_result(facts if as_json else "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()), as_json)


for _command in (quantize, plan, inspect, validate, dequantize, export, run, run_batch, reproduce, calibrate, info):
    main.add_command(_command)
