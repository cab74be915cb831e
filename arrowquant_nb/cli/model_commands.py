"""Subcommands on one model: what a run would do, the run, what it left, and whether it can be done again."""

from typing import Any

import click

import arrowquant_nb as aq
from arrowquant_nb.cli.options import config_options, progress_bar, source_options
from arrowquant_nb.cli.output import json_option, print_result, quiet_option, shows_config
from arrowquant_nb.config import DiffusionQuantConfig

__all__ = ["calibrate", "inspect", "plan", "quantize", "reproduce", "validate"]

requantize_option = click.option(
    "--requantize", is_flag=True, help="Take a MODEL that is quantized already; errors add up."
)
calibration_option = click.option(
    "--calibration",
    help="A calibration file, or none; default the one beside MODEL, else a sample's own trajectories.",
)


@click.command(short_help="Quantize a model into a folder; resumes.")
@click.argument("model")
@click.argument("output")
@config_options
@source_options
@requantize_option
@calibration_option
@click.option("--overwrite", is_flag=True, help="Replace a finished model of another source that OUTPUT holds.")
@json_option
@quiet_option
@shows_config
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
    print_result(result, as_json)


@click.command(short_help="Say what a run would do and cost.")
@click.argument("model")
@config_options
@source_options
@requantize_option
@calibration_option
@click.option(
    "--forecast/--no-forecast",
    default=True,
    help="Predict size and quality from a sample of the rows; without it no weight is read. [default: on]",
)
@json_option
@shows_config
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
        print_result(found.to_dict() | ({"forecast": predicted.to_dict()} if predicted else {}), as_json=True)
    else:
        click.echo(f"{found}\n\n{predicted}" if predicted else str(found))


@click.command(short_help="List the tensors of a model, quantized or not.")
@click.argument("model")
@source_options
@json_option
def inspect(*, model: str, as_json: bool, component: str | None, variant: str | None) -> None:
    """List the tensors of MODEL, quantized or not, without reading the weights."""
    from arrowquant_nb.runs.inspection import inspect_model  # noqa: PLC0415 - may fail to load: see `Commands`

    print_result(inspect_model(model, component, variant), as_json)


@click.command(short_help="Compare a quantized model with its original.")
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
@json_option
@quiet_option
@click.pass_context
def validate(
    context: click.Context, original: str, quantized: str, n_samples: int | None, as_json: bool, quiet: bool
) -> None:
    """Compare every tensor of QUANTIZED with ORIGINAL; exit code 1 when one is missing, extra or off."""
    with progress_bar(quiet=quiet or as_json) as progress:
        report = aq.ArrowQuantV2().validate_quality(original, quantized, progress, n_samples=n_samples or 0)
    print_result(report, as_json)
    context.exit(0 if report.passed else 1)


@click.command(short_help="Run again and compare byte for byte.")
@click.argument("folder")
@click.option("--output", metavar="FOLDER", help="Keep the second run here instead of throwing it away.")
@json_option
@quiet_option
@click.pass_context
def reproduce(context: click.Context, folder: str, output: str | None, as_json: bool, quiet: bool) -> None:
    """Run FOLDER's run.json again and print which files come out byte-identical; exit code 1 when one differs."""
    with progress_bar(quiet=quiet or as_json) as progress:
        report = aq.reproduce(folder, output, progress_callback=progress)
    print_result(report, as_json)
    context.exit(0 if report.passed else 1)


@click.command(short_help="Record what the layers of a model are given while it samples.")
@click.argument("model")
@click.argument("output", metavar="OUTPUT.parquet")
@click.option("--prompts", metavar="FILE", help="One prompt, or one class number, a line; for pipelines.")
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Sampling steps.")
@click.option("--samples", "n_samples", type=click.IntRange(1, 4096), help="Trajectories; default one for each prompt.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@click.option("--component", help="Which model of a pipeline; default the one that denoises.")
@json_option
@quiet_option
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
    from arrowquant_nb.cli.calibrate_command import calibrate_model, facts  # noqa: PLC0415 - see `Commands`

    with progress_bar(quiet=quiet or as_json) as progress:
        found = calibrate_model(model, output, prompts, steps, n_samples, seed, component, progress)
    told = facts(found, output)
    text = f"{output}: {told['layers']} layers, {told['timesteps']} timesteps, {told['trajectories']} trajectories"
    print_result(told if as_json else text, as_json)
