"""A finished run reads back from its folder as the result that it returned."""

import dataclasses
import json
import shutil

import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig
from arrowquant_nb.errors import MetadataError, ModelNotFoundError, ValidationError
from arrowquant_nb.layer_tables import layer_rows
from arrowquant_nb.runs.recorded import read_result

SIZES = ("model_size_mb", "container_nbytes")
"""Measured when the folder is read: the run itself could not count the last line of its log."""


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "model"
    config = DiffusionQuantConfig(bit_width=2, min_accuracy=0.97, num_threads=1)
    return ArrowQuantV2(config).quantize_diffusion_model(models.dit, folder)


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run.quantized_path, tmp_path / "copy")
    return tmp_path / "copy"


def values(result, *left_out):
    return {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in left_out}


def test_the_result_read_back_is_the_result_of_the_run(run):
    again = read_result(run.quantized_path)
    assert run.fallback_history  # a run whose attempts are worth reading
    assert values(again, *SIZES) == values(run, *SIZES)
    assert run.model_size_mb < again.model_size_mb < run.model_size_mb + 0.01


def test_a_folder_passed_on_without_its_records_still_tells_every_layer(run, copy):
    for name in ("run.json", "events.jsonl", "journal.jsonl"):
        (copy / name).unlink()
    again = read_result(copy)
    assert [row[:5] for row in layer_rows(again.layers)] == [row[:5] for row in layer_rows(run.layers)]
    assert [r.nbytes for r in again.layers] == [r.nbytes for r in run.layers]
    assert (again.quantization_time_s, again.fallback_history) == (0.0, ())
    assert again.config == run.config | {"num_threads": 0}


def test_a_journal_of_other_work_is_not_believed(run, copy):
    lines = [json.loads(line) for line in (copy / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line["xxh3"] = "0" * 32
    (copy / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_result(copy).sqnr_db == run.sqnr_db
    assert not read_result(copy).fallback_history
    (copy / "journal.jsonl").write_text("damaged\n")
    assert not read_result(copy).fallback_history


def test_what_is_no_finished_model_is_named(tmp_path, copy):
    with pytest.raises(ModelNotFoundError, match=r"no manifest\.json"):
        read_result(tmp_path / "absent")
    (copy / "run.json").write_text('{"quantization_time_s": "soon"}')
    with pytest.raises(MetadataError, match="records cannot be read"):
        read_result(copy)
    (copy / "stats.parquet").write_bytes(b"")
    with pytest.raises(ValidationError, match=r"stats\.parquet"):
        read_result(copy)
