"""What holds for every export: an output appears whole or not at all, and nothing is overwritten unasked."""

import json
import subprocess
import sys

import pytest
from safetensors.numpy import load_file

from arrowquant_nb import (
    CheckpointError,
    ConfigurationError,
    ExportReport,
    ModelNotFoundError,
    OutputError,
    dequantize_model,
    export_model,
    open_checkpoint,
)
from tests.conftest import tree


def test_safetensors_are_the_files_that_dequantize_writes(models, tmp_path):
    report = export_model(models.quantized("sharded"), "safetensors", tmp_path / "out")
    dequantize_model(models.quantized("sharded"), tmp_path / "same")
    found, expected = tree(tmp_path / "out"), tree(tmp_path / "same")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["target"] == "safetensors"
    found.pop("export.json")
    assert found == expected
    assert report.nbytes == sum(a.nbytes for p in tmp_path.glob("out/*.safetensors") for a in load_file(p).values())
    assert {t.written_as for t in report.tensors if not t.exact} == {"bfloat16"}
    assert ExportReport.from_dict(report.to_dict()) == report
    assert "rounded to bfloat16" in "".join(report.warnings)


def test_an_unknown_target_and_a_missing_model_are_named(models, tmp_path):
    with pytest.raises(ConfigurationError, match="'onnx'; there are: safetensors"):
        export_model(models.quantized("dit", scale_format="float16"), "onnx", tmp_path / "out")
    with pytest.raises(ModelNotFoundError):
        export_model(tmp_path / "none", "safetensors", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_output_is_replaced_only_when_asked_and_only_an_export(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="neither empty nor an earlier export"):
            export_model(models.quantized("dit", scale_format="float16"), "safetensors", out, overwrite=overwrite)
    (out / "mine.txt").unlink()
    export_model(models.quantized("dit", scale_format="float16"), "safetensors", out)
    before = tree(out)
    with pytest.raises(OutputError, match="overwrite=True"):
        export_model(models.quantized("dit", scale_format="float16"), "diffusers", out)
    assert tree(out) == before
    export_model(models.quantized("dit", scale_format="float16"), "diffusers", out, overwrite=True)
    assert "quantization_config" in (out / "config.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_export_that_fails_leaves_nothing(models, tmp_path):
    def stop(message, fraction):
        if fraction > 0.5:
            raise RuntimeError(message)

    for target in ("safetensors", "diffusers"):
        with pytest.raises(RuntimeError):
            export_model(
                models.quantized("dit", scale_format="float16"), target, tmp_path / "out", progress_callback=stop
            )
        assert not list(tmp_path.iterdir())


SMALL_DISK = """
import resource, signal, sys
import arrowquant_nb as aq
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for target, output in (("safetensors", "a"), ("diffusers", "b"), ("gguf", "c.gguf"), ("comfy", "d.safetensors")):
    try:
        aq.export_model(sys.argv[1], target, f"{sys.argv[2]}/{output}")
    except aq.OutputError as error:
        print(target, "cannot write" in str(error))
    except aq.ConfigurationError as error:
        print(target, "gguf package" in str(error))
"""


def test_a_disk_that_fills_up_leaves_nothing(models, tmp_path):
    arguments = [sys.executable, "-c", SMALL_DISK, str(models.quantized("dit")), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["safetensors", "True", "diffusers", "True", "gguf", "True", "comfy", "True"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["safetensors", "diffusers"])
def test_progress_rises_to_one(models, tmp_path, target):
    seen = []
    export_model(models.quantized("mixed"), target, tmp_path / "out", progress_callback=lambda _, f: seen.append(f))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def test_packed_codes_are_not_taken_for_a_float_checkpoint(models, tmp_path):
    export_model(models.quantized("dit"), "diffusers", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"to_k\.weight\.packed.*not float weights"):
        open_checkpoint(tmp_path / "out")


def test_outputs_inside_the_model_are_refused(models, tmp_path):
    model = models.quantized("dit", scale_format="float16")
    for output in (model / "out", model, model.parent):
        with pytest.raises(OutputError, match="inside one another"):
            export_model(model, "safetensors", output)
    with pytest.raises(OutputError, match="no name"):
        export_model(model, "safetensors", tmp_path / ("x" * 300))
