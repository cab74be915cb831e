"""Subcommands that write a quantized model for other tools."""

import click

import arrowquant_nb as aq
from arrowquant_nb.cli.options import progress_bar, warnings_to_stderr
from arrowquant_nb.cli.output import json_option, print_result, quiet_option

__all__ = ["dequantize", "export"]


@click.command(short_help="Write a quantized model back as safetensors.")
@click.argument("quantized")
@click.argument("output")
@json_option
@quiet_option
def dequantize(quantized: str, output: str, as_json: bool, quiet: bool) -> None:
    """Write QUANTIZED back as a safetensors folder of the original layout, for any other tool to read.

    Of a pipeline it writes the quantized component; `export --to safetensors --pipeline FOLDER` adds the others.
    """
    with progress_bar(quiet=quiet or as_json) as progress:
        folder = str(aq.dequantize_model(quantized, output, progress))
    print_result({"path": folder} if as_json else folder, as_json)


@click.command(short_help="Write a quantized model in another tool's format.")
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
@json_option
@quiet_option
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
    print_result(report, as_json)
