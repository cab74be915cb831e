"""Record files of three kinds give the same calibration; whatever does not fit is named, and nothing is ignored."""

import json
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import SETTINGS, Tiny, inputs_of

from arrowquant_nb import ArrowQuantError, MetadataError, ModelNotFoundError, ShapeMismatchError
from arrowquant_nb.calibration.records import calibrate_on_records
from arrowquant_nb.samples.runnable import Step

SHAPES = {"hidden_states": [4, 4], "class_labels": []}


def record(seed=0, timestep=700, **fields):
    x = np.random.default_rng(seed).standard_normal(16, dtype=np.float32)
    data = {"hidden_states": x.tolist(), "class_labels": [seed % 3]}
    return {"data": data, "timestep": timestep, "shape": SHAPES} | fields


RECORDS = [record(10 * t + i, t) for t in (900, 700, 300) for i in range(8)]


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return path
    table = pa.Table.from_pylist(records)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, 7)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calibration.jsonl"


def refused(path, error, message, model=None):
    with pytest.raises(error, match=message) as caught:
        calibrate_on_records(model or Tiny(), path, SETTINGS)
    assert path.name in str(caught.value)


def test_the_three_kinds_of_file_give_the_same_calibration(tmp_path):
    found = [
        calibrate_on_records(Tiny(), write(tmp_path / f"calibration{suffix}", RECORDS), SETTINGS)
        for suffix in (".jsonl", ".parquet", ".arrow")
    ]
    assert len({c.data_hash for c in found}) == 1
    assert len({c.key for c in found}) == 3  # of three different files
    assert found[0].source == "file"
    assert found[0]["q.weight"].times.tolist() == [900, 700, 300]


def test_an_arrow_stream_is_read_like_an_arrow_file(tmp_path):
    table = pa.Table.from_pylist(RECORDS)
    path = tmp_path / "calibration.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    other = write(tmp_path / "other.jsonl", RECORDS)
    assert (
        calibrate_on_records(Tiny(), path, SETTINGS).data_hash
        == calibrate_on_records(Tiny(), other, SETTINGS).data_hash
    )


def test_a_quarter_of_each_step_is_held_out_and_the_rest_builds_the_hessian(path):
    layer = calibrate_on_records(Tiny(), write(path, RECORDS), SETTINGS)["out.weight"]
    assert layer.n_rows == 3 * 6 * 4
    assert layer.held_out.shape == (3, 3, 6)
    seen = {row.tobytes() for row in layer.rows.reshape(-1, 6)}
    assert not seen & {row.tobytes() for row in layer.held_out.reshape(-1, 6)}


def test_the_hessian_is_of_the_records_themselves(path):
    # Two records of a timestep: one is fitted, the other held out, so each of the four choices can be told apart.
    pair = [record(1), record(2)]
    layer = calibrate_on_records(Tiny(), write(path, pair), SETTINGS)["patch.weight"]
    model = Tiny()
    products = []
    for r in pair:
        x = np.array(r["data"]["hidden_states"], np.float32).reshape(1, 4, 4)
        rows = inputs_of(model, [Step({"hidden_states": x, "class_labels": np.array([0])}, 700)])["patch.weight", 700]
        products.append(rows.astype(float).T @ rows.astype(float) / len(rows))
    assert sum(np.allclose(layer.hessian, p) for p in products) == 1


def test_many_timesteps_are_joined_to_neighbouring_ones_with_enough_records_each(path):
    records = [record(i, 7 * i + 3) for i in range(120)]
    layer = calibrate_on_records(Tiny(), write(path, records), SETTINGS)["q.weight"]
    assert layer.n_steps == 24
    assert layer.times[0] == 7 * 119 + 3
    odd = calibrate_on_records(Tiny(), write(path, records[:3]), SETTINGS)["q.weight"]
    assert odd.times.tolist() == [17]


def test_calibration_samples_bounds_what_is_used_of_each_step(path):
    records = [record(i, 500) for i in range(40)]
    layer = calibrate_on_records(Tiny(), write(path, records), SETTINGS)["q.weight"]
    assert layer.n_rows == 4 * SETTINGS.n_samples


def test_a_model_with_one_input_takes_plain_lists(path):
    class Single(Tiny):
        def trajectories(self, n, seed):
            for step in super().trajectories(n, seed):
                yield Step({"hidden_states": step.inputs["hidden_states"]}, step.time)

        def forward(self, step, linear=None):
            zeros = np.zeros(len(step.inputs["hidden_states"]), int)
            return super().forward(Step({**step.inputs, "class_labels": zeros}, step.time), linear)

    plain = [{"data": r["data"]["hidden_states"], "timestep": 5, "shape": [4, 4]} for r in RECORDS]
    assert len(calibrate_on_records(Single(), write(path, plain), SETTINGS)) == 5
    refused(write(path, plain), MetadataError, r"record 1: data must name each input of the model once")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"timestep": 1000}, MetadataError, r"timestep is 1000; it must be an integer in 0\.\.999"),
        ({"timestep": -1}, MetadataError, "timestep is -1"),
        ({"timestep": 1.5}, MetadataError, "timestep is 1.5"),
        ({"timestep": True}, MetadataError, "timestep is True"),
        ({"label": 3}, MetadataError, "the field 'label' is unknown"),
        ({"shape": {**SHAPES, "hidden_states": [2, 8]}}, ShapeMismatchError, r"\[2, 8\], the model takes \[4, 4\]"),
        ({"shape": {**SHAPES, "hidden_states": [1 << 40] * 9}}, ShapeMismatchError, r"the model takes \[4, 4\]"),
        ({"shape": {"hidden_states": [4, 4]}}, MetadataError, "shape must name each input"),
        ({"data": [1.0] * 16}, MetadataError, "data must name each input"),
        ({"data": {"hidden_states": [1.0] * 15, "class_labels": [0]}}, ShapeMismatchError, "found 15 values"),
        ({"data": {"hidden_states": [[1.0] * 4] * 4, "class_labels": [0]}}, ShapeMismatchError, "found 4 values"),
        ({"data": {"hidden_states": ["1"] * 16, "class_labels": [0]}}, MetadataError, "must be numbers, found '1'"),
        ({"data": {"hidden_states": [1e39] * 16, "class_labels": [0]}}, MetadataError, "finite float32"),
        ({"data": {"hidden_states": [10**400] * 16, "class_labels": [0]}}, MetadataError, "finite float32"),
        ({"data": {"hidden_states": [0] * 16, "class_labels": [0.5]}}, MetadataError, "integers of 0 or more"),
        ({"data": {"hidden_states": [0] * 16, "class_labels": [-1]}}, MetadataError, "integers of 0 or more"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_file_number_and_field(path, change, error, message):
    refused(write(path, [*RECORDS[:4], record(0, **change)]), error, "record 5: .*" + message)


def test_an_index_that_the_model_does_not_have_is_a_typed_error(path):
    data = {"hidden_states": [0.0] * 16, "class_labels": [4]}
    refused(write(path, [record(0, data=data)] * 2), MetadataError, "an index that the model does not have")


def test_records_that_make_the_model_overflow_are_named_by_file_and_layer(path):
    data = {"hidden_states": [3e38] * 16, "class_labels": [0]}
    with np.errstate(all="ignore"):
        refused(write(path, [record(0, data=data)] * 2), MetadataError, r"'q\.weight': its input holds NaN or infinity")


def test_one_record_is_too_few_because_one_is_held_out(path):
    refused(write(path, RECORDS[:1]), MetadataError, "at least two are needed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no records"),
        (b"\n", "record 1: the line is empty"),
        (b"[1, 2]\n", "record 1: must be an object"),
        (b'{"data": [1], "timestep": 1\n', "record 1: not valid JSON"),
        (b"\xff\xfe\n", "record 1: not valid JSON"),
        (b"[" * 60000 + b"\n", "record 1: not valid JSON"),
        (b'{"data": [NaN], "timestep": 1, "shape": [1]}\n', "NaN is not a number of JSON"),
        (b'{"timestep": 1, "timestep": 2}\n', "a key stands twice"),
        (b'{"timestep": 1, "shape": [1]}\n', "the field 'data' is missing"),
        (b'{"data": [' + b"1," * 60000, "record 1: the line is longer than the 66,216 bytes"),
        (b'{"timestep": ' + b"9" * 5000 + b"}", "record 1: not valid JSON"),
    ],
)
def test_lines_that_are_no_records_are_refused_before_they_cost_memory(path, text, message):
    path.write_bytes(text)
    refused(path, MetadataError, message)


def test_a_missing_file_and_an_unknown_kind_are_errors(path, tmp_path):
    refused(path, ModelNotFoundError, "there is no calibration file")
    refused(tmp_path / "calibration.npz", MetadataError, "calibration files end in")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"data": "abc", "timestep": 1, "shape": [4]}] * 2, "column 'data' has type string"),
        ([{"data": [[1.0]], "timestep": 1, "shape": [4]}] * 2, "column 'data' has type list"),
        ([{"data": [1.0], "timestep": "x", "shape": [4]}] * 2, "column 'timestep' has type string"),
        ([{"data": [1.0], "timestep": 1}] * 2, "the field 'shape' is missing"),
        ([record(0, timestep=None), record(1)], "timestep is None"),
    ],
)
def test_columns_of_other_types_are_refused_before_they_are_unpacked(tmp_path, suffix, records, message):
    refused(write(tmp_path / f"calibration{suffix}", records), MetadataError, message)


def test_nan_in_a_column_is_refused_with_its_record(tmp_path):
    bad = record(0)
    bad["data"]["hidden_states"][3] = float("nan")
    for suffix in (".parquet", ".arrow"):
        refused(write(tmp_path / f"calibration{suffix}", [*RECORDS[:2], bad]), MetadataError, "record 3: .* found nan")


def test_a_small_file_that_unpacks_to_much_is_refused_by_its_footer(tmp_path):
    path = tmp_path / "calibration.parquet"
    bomb = {"data": pa.array([[0.0] * 4_000_000], pa.list_(pa.float32())), "timestep": [1], "shape": [[4_000_000]]}
    pq.write_table(pa.table(bomb), path, compression="zstd")
    assert path.stat().st_size < 100_000
    refused(path, MetadataError, "declares 4,000,000 values")
    pq.write_table(pa.table({"data": [[0.0]] * 70_000, "timestep": [1] * 70_000, "shape": [[1]] * 70_000}), path)
    refused(path, MetadataError, "70,000 records; at most 65,536")


def test_compressed_arrow_buffers_are_refused_because_their_size_is_not_known(tmp_path):
    path = tmp_path / "calibration.arrow"
    table = pa.Table.from_pylist(RECORDS)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    refused(path, MetadataError, "compressed")


def test_a_list_that_is_longer_than_any_record_is_refused_in_arrow_too(tmp_path):
    table = pa.table({"data": pa.array([[0.0] * 100_000], pa.list_(pa.float32())), "timestep": [1], "shape": [[4]]})
    path = tmp_path / "calibration.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    refused(path, MetadataError, "more numbers than they can hold")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_damaged_files_give_typed_errors_or_a_whole_calibration(tmp_path, suffix):
    path = write(tmp_path / f"calibration{suffix}", RECORDS[:6])
    whole = path.read_bytes()
    rng = np.random.default_rng(zlib.crc32(suffix.encode()))
    messages = []
    for _ in range(60):
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            for place in rng.integers(len(whole), size=rng.integers(1, 4)):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert len(calibrate_on_records(Tiny(), path, SETTINGS)) == 5
        except ArrowQuantError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(path.name in message for message in messages)
