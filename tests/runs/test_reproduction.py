"""The same run again gives the same bytes, wherever and whenever it runs."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, MetadataError, ModelNotFoundError, reproduce
from tests.conftest import NOT_COMPARED, tree

RUN = """
import sys
from arrowquant_nb import ArrowQuantV2
ArrowQuantV2().quantize_diffusion_model(sys.argv[1], sys.argv[2])
"""


def test_a_recorded_run_is_reproduced_file_by_file(models):
    report = reproduce(models.quantized("dit"))
    assert report.passed
    assert set(report.identical) == set(tree(models.quantized("dit")))
    assert (report.different, report.missing, report.extra, report.environment_changes) == ((), (), (), ())
    assert "byte-identical" in str(report)


def test_a_run_with_other_settings_is_reproduced_from_its_record(models, tmp_path):
    settings = {"bit_width": 8, "group_size": 32, "method": "rtn", "layer_bit_widths": {"*.ff.*": 4}}
    report = reproduce(models.quantized("sharded", **settings), tmp_path / "again")
    assert report.passed
    assert tree(tmp_path / "again") == tree(models.quantized("sharded", **settings))


def test_changed_and_removed_files_are_named_and_the_users_own_are_not_compared(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models.quantized("dit"), folder)
    (folder / "README.md").write_text("other")
    (folder / "config.json").unlink()
    (folder / "notes.txt").touch()
    report = reproduce(folder)
    assert not report.passed
    assert (report.different, report.missing, report.extra) == (("README.md",), (), ("config.json",))


def test_another_version_is_noted(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models.quantized("dit"), folder)
    record = json.loads((folder / "run.json").read_text())
    record["versions"]["numpy"] = "1.0"
    (folder / "run.json").write_text(json.dumps(record))
    [note] = reproduce(folder).environment_changes
    assert "numpy" in note
    assert "1.0" in note


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"model": 1}', "[" * 50_000])
def test_a_record_that_is_missing_or_damaged_is_an_error(models, tmp_path, content):
    folder = tmp_path / "model"
    shutil.copytree(models.quantized("dit"), folder)
    (folder / "run.json").unlink()
    if content is None:
        with pytest.raises(ModelNotFoundError, match=r"run\.json"):
            reproduce(folder)
        return
    (folder / "run.json").write_text(content)
    with pytest.raises(MetadataError, match=r"run\.json"):
        reproduce(folder)


@pytest.mark.parametrize(
    "change", [{"model": 5}, {"config": []}, {"config": {"bit_width": 3}}, {"versions": []}, {"component": 7}]
)
def test_a_record_with_fields_of_the_wrong_type_is_a_typed_error(models, tmp_path, change):
    from arrowquant_nb import ArrowQuantError

    folder = tmp_path / "model"
    shutil.copytree(models.quantized("dit"), folder)
    record = json.loads((folder / "run.json").read_text()) | change
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ArrowQuantError):
        reproduce(folder)


def test_a_model_whose_source_is_gone_is_named(models, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(models.dit, source)
    ArrowQuantV2().quantize_diffusion_model(source, tmp_path / "model")
    shutil.rmtree(source)
    with pytest.raises(ModelNotFoundError, match="source"):
        reproduce(tmp_path / "model")


def test_place_time_locale_hash_seed_and_threads_change_no_byte(models, tmp_path):
    source = tmp_path / "elsewhere" / "dit"
    shutil.copytree(models.dit, source)
    for path in source.iterdir():
        os.utime(path, (1, 1))
    for k, environment in enumerate(
        (
            {"LC_ALL": "C", "PYTHONHASHSEED": "1", "TZ": "UTC"},
            {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"},
        )
    ):
        output = tmp_path / "deep" / str(k) / "model"
        subprocess.run([sys.executable, "-c", RUN, str(source), str(output)], check=True, env=os.environ | environment)
        assert tree(output) == tree(models.quantized("dit"))
    config = DiffusionQuantConfig(num_threads=1)
    ArrowQuantV2(config).quantize_diffusion_model(source, tmp_path / "one")
    assert tree(tmp_path / "one") == tree(models.quantized("dit"))


def test_compared_files_hold_no_place_host_time_or_machine(models, tmp_path):
    output = tmp_path / "model"
    began = time.time()
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    record = json.loads((output / "run.json").read_text())
    forbidden = [
        str(tmp_path),
        str(models.dit),
        str(Path.cwd()),
        time.strftime("%Y-%m-%d", time.gmtime(began)),
        str(int(began))[:7],
    ]
    forbidden += [
        name for name in (platform.node(), record["machine"]["isa"]) if len(name) > 5
    ]  # "vm" stands in any payload
    for path in output.rglob("*"):
        if path.is_file() and path.name not in NOT_COMPARED:
            raw = path.read_bytes()
            for text in forbidden:
                assert text.encode() not in raw, f"{text} in {path.name}"


def test_the_record_says_what_is_needed_to_run_again(models):
    record = json.loads((models.quantized("dit") / "run.json").read_text())
    assert record["model"] == str(models.dit)
    assert record["config"]["bit_width"] == 4
    assert set(record["inputs"]) == {r for r in record["inputs"] if len(record["inputs"][r]) == 32}
    assert len(record["inputs"]) == 32
    assert record["versions"]["python"] == platform.python_version()
    assert record["quantization_time_s"] > 0
    assert record["machine"]["isa"]
    assert record["n_threads"] >= 1
    assert "sources" in record
