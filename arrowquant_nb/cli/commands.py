"""The `arrowquant` command: each subcommand is a few lines around one call of the Python interface.

Results go to stdout, as text or with `--json` as JSON and nothing else; progress and errors go to stderr.
Exit codes: 0 done, 1 failed (with a message that names what to change), 2 wrong usage, 130 interrupted.

The package loads its parts on first use, inside a subcommand: what fails while they load ends in a message too.
"""

import errno
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

import arrowquant_nb as aq
from arrowquant_nb import batch
from arrowquant_nb.batch import parameters
from arrowquant_nb.cli.options import config_options, load_config, progress_bar, source_options, warnings_to_stderr
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import ArrowQuantError

__all__ = ["main"]


class _Interrupted(click.ClickException):
    """Ctrl-C, reported as shells expect it."""

    exit_code = 130


class _Commands(click.Group):
    """The subcommands, in the order of use, with our own errors turned into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
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


def _print(result: Any, as_json: bool) -> None:
    """Print a result, or anything JSON-ready, on stdout."""
    if as_json:
        data = result.to_dict() if hasattr(result, "to_dict") else result
        click.echo(json.dumps(data, indent=1))
    else:
        click.echo(str(result))


def _shows_config(command: Callable[..., None]) -> Callable[..., None]:
    """Join the settings into `config`; with `--show-config` print them instead of running the command."""

    @functools.wraps(command)
    def wrapped(yaml: str | None, show_config: bool, as_json: bool, **rest: Any) -> None:
        settings = {name: rest.pop(name) for name in DiffusionQuantConfig.model_fields}
        config = load_config(yaml, settings)
        if not show_config:
            command(config=config, as_json=as_json, **rest)
        elif as_json:
            _print({"config": config.to_dict(), "sources": dict(config.sources)}, as_json=True)
        else:
            _print(config, as_json=False)

    return wrapped


_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout and nothing else.")
_quiet = click.option("--quiet", is_flag=True, help="Write nothing to stderr but errors: no progress bar, no remarks.")
_requantize = click.option("--requantize", is_flag=True, help="Take a MODEL that is quantized already; errors add up.")
_calibration = click.option(
    "--calibration",
    help="A calibration file, or none; default the one beside MODEL, else a sample's own trajectories.",
)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"arrowquant_nb {aq.__version__}")
        context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def main() -> None:
    """Quantize diffusion models to INT2, INT4 or INT8.

    A MODEL is a diffusers or transformers folder, a .safetensors file, or the name of a bundled sample
    (digits-dit, docs-mlm, plucks-dit, stdlib-mlm).
    """


@main.command(short_help="Quantize a model into a folder; resumes.")
@click.argument("model")
@click.argument("output")
@config_options
@source_options
@_requantize
@_calibration
@click.option("--overwrite", is_flag=True, help="Replace a finished model of another source that OUTPUT holds.")
@_json
@_quiet
@_shows_config
def quantize(
    *,
    model: str,
    output: str,
    config: DiffusionQuantConfig,
    component: str | None,
    variant: str | None,
    requantize: bool,
    overwrite: bool,
    calibration: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Quantize MODEL into the folder OUTPUT; an interrupted run is taken up where it stopped."""
    silent = quiet or as_json
    with progress_bar(quiet=silent) as progress:
        result = aq.ArrowQuantV2(config).quantize_diffusion_model(
            model,
            output,
            progress_callback=progress,
            requantize=requantize,
            overwrite=overwrite,
            calibration=calibration,
            component=component,
            variant=variant,
        )
    fell_back = sum(report.fell_back for report in result.layers)
    if fell_back and not silent:
        layers = "1 layer" if fell_back == 1 else f"{fell_back} layers"
        click.echo(f"{layers} missed the quality gate and fell back to more bits", err=True)
    _print(result, as_json)


@main.command(short_help="Say what a run would do and cost.")
@click.argument("model")
@config_options
@source_options
@_requantize
@_calibration
@click.option(
    "--forecast/--no-forecast",
    default=True,
    help="Predict size and quality from a sample of the rows; without it no weight is read. [default: on]",
)
@_json
@_shows_config
def plan(
    *,
    model: str,
    config: DiffusionQuantConfig,
    component: str | None,
    variant: str | None,
    requantize: bool,
    calibration: str | None,
    forecast: bool,
    as_json: bool,
) -> None:
    """Say what would become of each tensor of MODEL, how large the result will be, and what it will have lost.

    The forecast quantizes a sample of every layer's rows, and runs the model where that is possible: seconds. What it
    measured is kept for the next time.
    """
    quantizer = aq.ArrowQuantV2(config)
    source: dict[str, Any] = {
        "component": component, "variant": variant, "requantize": requantize, "calibration": calibration,
    }  # fmt: skip
    found = quantizer.plan(model, **source)
    predicted = quantizer.forecast(model, **source) if forecast else None
    if as_json:
        _print(found.to_dict() | ({"forecast": predicted.to_dict()} if predicted else {}), as_json=True)
    else:
        click.echo(f"{found}\n\n{predicted}" if predicted else str(found))


@main.command(short_help="List the tensors of a model, quantized or not.")
@click.argument("model")
@source_options
@_json
def inspect(*, model: str, as_json: bool, component: str | None, variant: str | None) -> None:
    """List the tensors of MODEL, quantized or not, without reading the weights."""
    from arrowquant_nb.runs.inspection import inspect_model  # noqa: PLC0415 - may fail to load: see `_Commands`

    _print(inspect_model(model, component, variant), as_json)


@main.command(short_help="Compare a quantized model with its original.")
@click.argument("original")
@click.argument("quantized")
@click.option(
    "--samples",
    "n_samples",
    type=click.IntRange(2),
    default=None,
    metavar="N",
    help="Also run a bundled sample on N samples and print what its output lost, rounded inputs included.",
)
@_json
@_quiet
@click.pass_context
def validate(
    context: click.Context, original: str, quantized: str, n_samples: int | None, as_json: bool, quiet: bool
) -> None:
    """Compare every tensor of QUANTIZED with ORIGINAL; exit code 1 when one is missing, extra or off."""
    with progress_bar(quiet=quiet or as_json) as progress:
        report = aq.ArrowQuantV2().validate_quality(original, quantized, progress, n_samples=n_samples or 0)
    _print(report, as_json)
    context.exit(0 if report.passed else 1)


@main.command(short_help="Write a quantized model back as safetensors.")
@click.argument("quantized")
@click.argument("output")
@_json
@_quiet
def dequantize(quantized: str, output: str, as_json: bool, quiet: bool) -> None:
    """Write QUANTIZED back as a safetensors folder of the original layout, for any other tool to read.

    Of a pipeline it writes the quantized component; `export --to safetensors --pipeline FOLDER` adds the others.
    """
    with progress_bar(quiet=quiet or as_json) as progress:
        folder = str(aq.dequantize_model(quantized, output, progress))
    _print({"path": folder} if as_json else folder, as_json)


@main.command(short_help="Write a quantized model in another tool's format.")
@click.argument("model")
@click.argument("output")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="TARGET",
    help="safetensors: floats again; diffusers: packed codes for from_pretrained; gguf: one file of GGUF blocks; "
    "comfy: one file for ComfyUI; compressed-tensors: a text model for transformers.",
)
@click.option(
    "--weight-type",
    metavar="TYPE",
    help="gguf: Q8_0, Q6_K, Q4_K, Q4_1, Q4_0 or Q2_K for tensors of at most its bits; comfy: int8_tensorwise or "
    "convrot_w4a4; compressed-tensors: W4A16, W8A16 or W8A8. [default: what takes the codes over, else a type of more "
    "bits; comfy: int8_tensorwise]",
)
@click.option("--convolutions", is_flag=True, help="gguf: convolutions as blocks too, which few readers take.")
@click.option(
    "--pipeline",
    metavar="FOLDER",
    help="safetensors, diffusers: the pipeline that MODEL comes from; its other components are copied to OUTPUT.",
)
@click.option(
    "--min-sqnr-db",
    type=float,
    default=15.0,
    show_default=True,
    metavar="X",
    help="Refuse to round a tensor again where less than this (dB) would be left of its values.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export that OUTPUT holds.")
@_json
@_quiet
def export(
    *,
    model: str,
    output: str,
    target: str,
    weight_type: str | None,
    convolutions: bool,
    pipeline: str | None,
    min_sqnr_db: float,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the quantized MODEL to OUTPUT in the format of another tool.

    What the format cannot hold, and what had to be rounded again, is said on stderr and stands in the report.
    """
    with warnings_to_stderr(quiet=quiet or as_json), progress_bar(quiet=quiet or as_json) as progress:
        report = aq.export_model(
            model,
            target,
            output,
            weight_type=weight_type,
            convolutions=convolutions,
            pipeline=pipeline,
            min_sqnr_db=min_sqnr_db,
            overwrite=overwrite,
            progress_callback=progress,
        )
    _print(report, as_json)


@main.command(short_help="Execute a notebook with parameters.")
@click.argument("paths", nargs=-1, required=True, metavar="[NOTEBOOK] OUTPUT.ipynb")
@click.option(
    "-p", "--parameter", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; repeatable."
)
@click.option("--html", is_flag=True, help="Also write the notebook as one HTML file beside it.")
@click.option("--list-parameters", is_flag=True, help="Print the notebook's parameters and their defaults, then stop.")
@_json
@_quiet
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
        _print(listed if as_json else parameters.parameter_table(known), as_json)
        return
    values = parameters.parse_parameters(notebook, given)
    draw = not (quiet or as_json) and sys.stderr.isatty()
    finished = batch.run_notebook(notebook, Path(paths[-1]), values, html=html, progress_bar=draw)
    _print(finished, as_json)


@main.command("batch", short_help="Execute a notebook over a grid of parameters; resumes.")
@click.argument("jobs", metavar="JOBS.yaml")
@click.option("--output", metavar="FOLDER", help="Folder of the batch. [default: what JOBS.yaml says, else its name]")
@click.option("--at-once", type=click.IntRange(min=1), metavar="N", help="Jobs at the same time. [default: 2]")
@click.option("--html", is_flag=True, help="Also write every job's notebook as one HTML file.")
@_json
@_quiet
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
            if not silent and not sys.stderr.isatty():
                click.echo(f"{100 * fraction:3.0f} %  {message}", err=True)

        summary = batch.run_batch(jobs, output, at_once=at_once, html=html, progress_callback=tell)
    _print(summary, as_json)
    context.exit(0 if summary.passed else 1)


@main.command(short_help="Run again and compare byte for byte.")
@click.argument("folder")
@click.option("--output", metavar="FOLDER", help="Keep the second run here instead of throwing it away.")
@_json
@_quiet
@click.pass_context
def reproduce(context: click.Context, folder: str, output: str | None, as_json: bool, quiet: bool) -> None:
    """Run FOLDER's run.json again and print which files come out byte-identical; exit code 1 when one differs."""
    with progress_bar(quiet=quiet or as_json) as progress:
        report = aq.reproduce(folder, output, progress_callback=progress)
    _print(report, as_json)
    context.exit(0 if report.passed else 1)


@main.command(short_help="Record what the layers of a model are given while it samples.")
@click.argument("model")
@click.argument("output", metavar="OUTPUT.parquet")
@click.option("--prompts", metavar="FILE", help="One prompt, or one class number, a line; for pipelines.")
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Sampling steps.")
@click.option("--samples", "n_samples", type=click.IntRange(1, 4096), help="Trajectories; default one for each prompt.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@click.option("--component", help="Which model of a pipeline; default the one that denoises.")
@_json
@_quiet
def calibrate(
    *,
    model: str,
    output: str,
    prompts: str | None,
    steps: int,
    n_samples: int | None,
    seed: int,
    component: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run MODEL, a bundled sample or the folder of a diffusers pipeline, and record what its layers are given.

    The file is what `arrowquant quantize --calibration` takes.
    """
    from arrowquant_nb.cli.calibrate_command import calibrate_model, facts  # noqa: PLC0415 - see `_Commands`

    with progress_bar(quiet=quiet or as_json) as progress:
        found = calibrate_model(model, output, prompts, steps, n_samples, seed, component, progress)
    told = facts(found, output)
    text = f"{output}: {told['layers']} layers, {told['timesteps']} timesteps, {told['trajectories']} trajectories"
    _print(told if as_json else text, as_json)


@main.command(short_help="Say what is installed and loaded.")
@_json
def info(as_json: bool) -> None:
    """Say what is installed: versions, compiled or not, instruction set, threads."""
    facts: Mapping[str, Any] = aq.build_info()
    width = max(len(name) for name in facts)
    _print(facts if as_json else "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()), as_json)
