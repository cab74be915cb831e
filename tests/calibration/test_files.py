"""Stored calibrations: a round trip keeps every byte, and no damaged file is believed."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_model import SETTINGS, Tiny

from arrowquant_nb import (
    ArrowQuantError,
    ConfigurationError,
    MetadataError,
    ModelNotFoundError,
    OutputError,
    ShapeMismatchError,
    ValidationError,
)
from arrowquant_nb.calibration import capture_file
from arrowquant_nb.calibration.capture_file import METADATA_KEY, read_calibration, write_calibration
from arrowquant_nb.calibration.files import find_calibration_file, load_calibration
from arrowquant_nb.calibration.statistics import ARRAYS, Calibration


@pytest.fixture
def path(tmp_path, calibration):
    write_calibration(tmp_path / "calibration.parquet", calibration)
    return tmp_path / "calibration.parquet"


def rewrite(path, change_metadata=None, change_rows=None, **options):
    """Write the file again with other metadata or rows, as a stranger could."""
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    rows = table.to_pylist()
    metadata = (change_metadata or (lambda m: m))(metadata)
    rows = (change_rows or (lambda r: r))(rows)
    made = type(table).from_pylist(rows, schema=table.schema.with_metadata({METADATA_KEY: json.dumps(metadata)}))
    pq.write_table(made, path, row_group_size=1, **({"compression": "none", "use_dictionary": False} | options))


def test_a_round_trip_keeps_every_array_and_the_hashes(path, calibration):
    found = read_calibration(path)
    assert (found.data_hash, found.key, found.source) == (calibration.data_hash, calibration.key, "capture")
    assert list(found) == list(calibration)
    for name, layer in calibration.items():
        assert all(np.array_equal(getattr(found[name], field), getattr(layer, field)) for field in ARRAYS)
        assert found[name].histogram_range == layer.histogram_range
    assert np.shares_memory(found["q.weight"].hessian, found["k.weight"].hessian)
    assert load_calibration(path).data_hash == calibration.data_hash


def test_equal_calibrations_give_equal_files_whatever_the_block_size_reads_the_same(path, calibration, monkeypatch):
    once = path.read_bytes()
    write_calibration(path, calibration)
    assert path.read_bytes() == once
    monkeypatch.setattr(capture_file, "BLOCK_NBYTES", 100)
    write_calibration(path, calibration)
    assert pq.read_metadata(path).num_row_groups > 50
    assert read_calibration(path).data_hash == calibration.data_hash


def test_nothing_but_the_finished_file_is_left_in_the_folder(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, calibration):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the calibration"):
        write_calibration(tmp_path / "file" / "calibration.parquet", calibration)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m | {"format_version": "2.0"}, MetadataError, "format 2.0; this version reads 1.x"),
        (lambda _: [], MetadataError, "format ?"),
        (lambda m: m | {"source": "dream"}, MetadataError, "sources"),
        (lambda m: m | {"order": ["q.weight", "nowhere"]}, MetadataError, "does not fit"),
        (lambda m: m | {"order": None}, MetadataError, "does not fit"),
        (lambda m: m | {"settings": {"n_samples": -1}}, MetadataError, "n_samples"),
        (lambda m: m | {"settings": m["settings"] | {"n_timesteps": 500}}, MetadataError, "timestep 999"),
        (lambda m: m | {"layers": m["layers"] | {"q.weight": "out.weight"}}, ArrowQuantError, "calibration.parquet"),
        (
            lambda m: m | {"inputs": {n: {"n_rows": 9, "histogram_range": [0]} for n in m["inputs"]}},
            MetadataError,
            "does not fit",
        ),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(path, change, error, message):
    rewrite(path, change)
    with pytest.raises(error, match=message):
        read_calibration(path)


def first(rows, **fields):
    return [rows[0] | fields, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: first(r, data=b"x" * len(r[0]["data"])), ValidationError, "bytes do not match their hash"),
        (lambda r: first(r, dtype="object"), ShapeMismatchError, "dtype object"),
        (lambda r: first(r, shape=[1 << 50]), ShapeMismatchError, "shape"),
        (lambda r: first(r, shape=[100_000]), ShapeMismatchError, "declares 800,000 bytes, more than the file has"),
        (lambda r: first(r, shape=[-5]), ShapeMismatchError, "shape"),
        (lambda r: first(r, shape=[1, 5]), ShapeMismatchError, "shape"),
        (lambda r: first(r, array="surprise"), ShapeMismatchError, "surprise"),
        (lambda r: first(r, start=1), ShapeMismatchError, "does not follow"),
        (lambda r: first(r, count=9), ShapeMismatchError, "does not follow"),
        (lambda r: first(r, shape=[6], count=6), ShapeMismatchError, "instead of 48"),
        (lambda r: first(r, shape=[6]), ValidationError, "times of 'patch.weight' is incomplete"),
        (lambda r: [*r, r[0]], ShapeMismatchError, "does not follow"),
        (lambda r: r[1:], MetadataError, "does not fit its arrays"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(path, change, error, message):
    rewrite(path, change_rows=change)
    with pytest.raises(error, match=message) as caught:
        read_calibration(path)
    assert path.name in str(caught.value)


def test_blocks_that_together_declare_more_than_the_file_has_are_refused(path):
    size = path.stat().st_size // 8 // 2
    rewrite(path, change_rows=lambda r: [r[0] | {"shape": [size], "layer_name": f"layer{i}"} for i in range(50)])
    with pytest.raises(ShapeMismatchError, match="more than the file has"):
        read_calibration(path)


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"use_dictionary": True}, {"row_group_size": 5}])
def test_files_that_are_packed_otherwise_are_refused(path, options, calibration):
    table = pq.read_table(path)
    settings = {"compression": "none", "use_dictionary": False, "row_group_size": 1} | options
    pq.write_table(table, path, **settings)
    with pytest.raises(MetadataError, match="one plain, uncompressed row"):
        read_calibration(path)


def test_another_array_under_a_right_hash_of_its_block_is_still_refused_by_the_hash_of_the_whole(tmp_path, calibration):
    layers = {n: dataclasses.replace(v, held_out=v.held_out * 2) for n, v in calibration.items()}
    other = Calibration(layers, "capture", calibration.settings, calibration.model_hash)
    path = tmp_path / "calibration.parquet"
    write_calibration(path, other)
    rewrite(path, lambda m: m | {"data_hash": calibration.data_hash})
    with pytest.raises(ValidationError, match="do not match the file's hash"):
        read_calibration(path)


def test_damaged_files_are_refused_with_their_name_and_never_read_as_something_else(path, calibration):
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for number in range(150):
        damaged = bytearray(whole)
        if number < 40:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            end = len(whole) if number % 2 else 64  # the footer and the head more often than chance would have it
            place = int(rng.integers(max(0, end - 9000), end))
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            assert read_calibration(path).data_hash == calibration.data_hash
        except ArrowQuantError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(path.name in message for message in messages)


def test_the_file_beside_a_model_is_found_and_two_are_ambiguous(tmp_path):
    assert find_calibration_file(tmp_path) is None
    (tmp_path / "calibration.jsonl").write_text("{}")
    assert find_calibration_file(tmp_path) == tmp_path / "calibration.jsonl"
    (tmp_path / "calibration.arrow").write_text("")
    with pytest.raises(ConfigurationError, match=r"calibration\.jsonl and calibration\.arrow"):
        find_calibration_file(tmp_path)


def test_records_need_a_model_that_runs_and_a_missing_file_is_an_error(tmp_path):
    path = tmp_path / "calibration.jsonl"
    with pytest.raises(ModelNotFoundError):
        load_calibration(path, Tiny())
    path.write_text("{}\n")
    with pytest.raises(ConfigurationError, match="cannot be run here"):
        load_calibration(path)
    with pytest.raises(MetadataError, match="record 1"):
        load_calibration(path, Tiny(), SETTINGS)
    (tmp_path / "calibration.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValidationError, match="not a readable Parquet file"):
        load_calibration(tmp_path / "calibration.parquet", Tiny())
