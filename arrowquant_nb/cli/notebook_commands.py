"""Subcommands that execute notebooks: one, or a grid of parameters."""

from pathlib import Path

import click

from arrowquant_nb import batch
from arrowquant_nb.batch import parameters
from arrowquant_nb.cli.options import on_terminal, progress_bar
from arrowquant_nb.cli.output import json_option, print_result, quiet_option

__all__ = ["run", "run_batch"]


@click.command(short_help="Execute a notebook with parameters.")
@click.argument("paths", nargs=-1, required=True, metavar="[NOTEBOOK] OUTPUT.ipynb")
@click.option(
    "-p", "--parameter", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; repeatable."
)
@click.option("--html", is_flag=True, help="Also write the notebook as one HTML file beside it.")
@click.option("--list-parameters", is_flag=True, help="Print the notebook's parameters and their defaults, then stop.")
@json_option
@quiet_option
def run(
    *,
    paths: tuple[str, ...],
    given: tuple[tuple[str, str], ...],
    html: bool,
    list_parameters: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Execute a notebook with parameters; without NOTEBOOK the one that quantizes a model and shows what it cost.

    \b
    arrowquant run out.ipynb -p model digits-dit -p bit_width 4 --html
    """  # noqa: D301 - click looks for the backspace itself
    if len(paths) > 2:
        raise click.UsageError(f"at most two notebooks, NOTEBOOK and OUTPUT.ipynb, but {len(paths)} paths were given")
    notebook = Path(paths[0]) if len(paths) == 2 else batch.packaged_notebook()
    if list_parameters:
        known = parameters.read_parameters(notebook)
        listed = {name: parameter.to_dict() for name, parameter in known.items()}
        print_result(listed if as_json else parameters.parameter_table(known), as_json)
        return
    values = parameters.parse_parameters(notebook, given)
    draw = not (quiet or as_json) and on_terminal()
    finished = batch.run_notebook(notebook, Path(paths[-1]), values, html=html, progress_bar=draw)
    print_result(finished, as_json)


@click.command("batch", short_help="Execute a notebook over a grid of parameters; resumes.")
@click.argument("jobs", metavar="JOBS.yaml")
@click.option("--output", metavar="FOLDER", help="Folder of the batch. [default: what JOBS.yaml says, else its name]")
@click.option("--at-once", type=click.IntRange(min=1), metavar="N", help="Jobs at the same time. [default: 2]")
@click.option("--html", is_flag=True, help="Also write every job's notebook as one HTML file.")
@json_option
@quiet_option
@click.pass_context
def run_batch(
    context: click.Context,
    jobs: str,
    output: str | None,
    at_once: int | None,
    html: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Execute a notebook once for every combination of parameters; exit code 1 when a job failed.

    \b
    JOBS.yaml, such as:
      output: overnight
      grid:
        model: [digits-dit, docs-mlm]
        profile: [edge, local]
    """  # noqa: D301 - click looks for the backspace itself
    silent = quiet or as_json
    with progress_bar(quiet=silent) as progress:

        def tell(message: str, fraction: float) -> None:
            progress(message, fraction)
            if not silent and not on_terminal():
                click.echo(f"{100 * fraction:3.0f} %  {message}", err=True)

        summary = batch.run_batch(jobs, output, at_once=at_once, html=html, progress_callback=tell)
    print_result(summary, as_json)
    context.exit(0 if summary.passed else 1)
