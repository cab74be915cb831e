"""Folders whose names are no UTF-8, outputs that could not be written to their end, readers that leave early."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

import arrowquant_nb as aq
from arrowquant_nb.cli.commands import main
from arrowquant_nb.runs import dequantization
from arrowquant_nb.storage.durable import emptied_on_failure

ODD = os.fsdecode(b"h\xe4 \xff")
"""A name in Latin-1, as an older disk has it; in a C locale every other name looks like it."""


QUICK = ("--profile", "base_mode")


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("odd") / ODD
    run("calibrate", "digits-dit", place / f"{ODD}.parquet", "--samples", 2)
    run("quantize", "digits-dit", place / ODD, "--calibration", place / f"{ODD}.parquet", "--quiet", *QUICK)
    return place


def test_a_folder_whose_name_is_no_utf8_is_written_and_read(place):
    with aq.open_quantized(place / ODD) as model:
        assert len(model.dequantize("proj_out_2.weight"))
        assert set(model) == set(model.stats()["layer_name"].to_pylist())
    assert "passed" in run("validate", "digits-dit", place / ODD).stdout
    run("dequantize", place / ODD, place / "floats")
    assert list((place / "floats").rglob("*.safetensors"))


def test_notebooks_refuse_it_with_the_way_out(place):
    done = run("run", place / "out.ipynb", "-p", "model", place / ODD, code=1)
    assert "notebooks hold UTF-8, which this is not" in done.stderr
    assert "LC_ALL=C.UTF-8" in done.stderr
    assert not (place / "out.ipynb").exists()


@pytest.mark.parametrize("there", [False, True])
def test_what_could_not_be_written_to_its_end_can_be_tried_again(place, tmp_path, monkeypatch, there):
    output = tmp_path / "floats"
    if there:
        output.mkdir()
    whole = dequantization.bytes_back

    def full(model, name):
        if name.startswith("transformer_blocks.1"):
            raise OSError(28, "No space left on device")
        return whole(model, name)

    monkeypatch.setattr(dequantization, "bytes_back", full)
    assert "free space and run again" in run("dequantize", place / ODD, output, code=1).stderr
    assert output.exists() == there
    monkeypatch.undo()
    run("dequantize", place / ODD, output)


def test_an_interrupted_block_leaves_an_empty_folder(tmp_path):
    def fill(folder):
        with emptied_on_failure(folder):
            (folder / "sub").mkdir(parents=True)
            (folder / "sub" / "file").write_text("x")
            (folder / "file").write_text("x")
            raise KeyboardInterrupt

    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []


def test_a_reader_that_leaves_early_gets_no_traceback(place):
    for arguments in (["inspect", place / ODD], ["quantize", "--help"]):
        command = [sys.executable, "-m", "arrowquant_nb", *map(str, arguments)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()
            assert process.stderr.read() == ""


def test_without_stderr_and_on_a_full_disk_the_work_is_done_all_the_same(place, tmp_path):
    def shell(line):
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, env=os.environ)

    command = f"'{sys.executable}' -m arrowquant_nb"
    done = shell(f"{command} quantize digits-dit '{tmp_path}/out' --calibration none 2>&-")
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["model", "digits-dit"])
    done = shell(f"{command} inspect '{tmp_path}/out' > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the result cannot be printed (No space left on device)")
    assert "Traceback" not in done.stderr


def test_a_link_that_leads_in_a_circle_is_no_output(place, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for command in (
        ["quantize", "digits-dit"],
        ["dequantize", place / ODD],
        ["export", "--to", "diffusers", place / ODD],
    ):
        assert "loop" in run(*command, tmp_path / "loop", code=1).stderr


@pytest.mark.parametrize("arguments", [["plan", ""], ["quantize", "", "OUTPUT"], ["quantize", "digits-dit", ""]])
def test_an_empty_text_is_not_the_current_folder(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is an empty text: give a folder" in run(*arguments, code=1).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_is_not_downloaded_but_guessed():
    said = run("plan", "digit-dit", code=1).stderr
    assert 'Did you mean "digits-dit"?' in said
    assert "nothing is downloaded" in run("plan", "someone/some-model", code=1).stderr


def test_a_calibration_that_nothing_would_read_is_refused_before_the_model_runs(tmp_path):
    said = run("calibrate", "digits-dit", tmp_path / "c.txt", "--samples", 4096, code=1).stderr
    assert "its name must end in .parquet" in said
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.parquet").mkdir()
    for output in (tmp_path / "file" / "c.parquet", tmp_path / "folder.parquet"):
        said = run("calibrate", "digits-dit", output, "--samples", 4096, code=1).stderr
        assert "cannot be written there: choose another folder or name" in said


def test_a_cache_that_cannot_be_written_stops_no_forecast(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    forecast = aq.ArrowQuantV2(aq.DiffusionQuantConfig(modality="image")).forecast(models.dit)
    assert any("not kept for the next run" in warning for warning in forecast.warnings)
