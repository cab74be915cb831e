import os
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from arrowquant_nb.errors import (
    CheckpointError,
    MetadataError,
    ShapeMismatchError,
)
from arrowquant_nb.storage.checkpoint import open_checkpoint


def test_a_single_file_lists_tensors_in_file_order(tmp_path, write, weights):
    path = write(tmp_path / "m.safetensors", {"z.weight": weights((4, 8)), "a.bias": weights(4), "n": np.int64(7)})
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.kind, checkpoint.class_name, checkpoint.component) == ("single_file", None, None)
        assert list(checkpoint.entries) == ["z.weight", "a.bias", "n"]
        entry = checkpoint.entries["z.weight"]
        assert (entry.shape, entry.dtype, entry.rows, entry.columns, entry.nbytes) == ((4, 8), "float32", 4, 8, 128)
        assert (checkpoint.entries["n"].rows, checkpoint.entries["n"].columns) == (1, 1)
        assert checkpoint.n_bytes == 128 + 16 + 8


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_come_back_bit_exact_in_the_stored_dtype(tmp_path, write, weights, dtype):
    array = weights((6, 5, 3, 3), dtype)
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", {"pad": weights(3), "conv.weight": array}))
    rows = checkpoint.read_rows("conv.weight", 2, 3)
    assert rows.dtype == array.dtype
    assert rows.shape == (3, 45)
    assert rows.tobytes() == array[2:5].tobytes()
    assert checkpoint.read_bytes("conv.weight").tobytes() == array.tobytes()
    assert checkpoint.read_bytes("conv.weight", 10, 7).tobytes() == array.tobytes()[10:17]
    assert checkpoint.hash_tensor("conv.weight") == xxhash.xxh3_128_hexdigest(array.tobytes())


def test_a_given_buffer_is_filled_and_viewed(tmp_path, write, weights):
    array = weights((8, 16))
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", {"w.weight": array}))
    buffer = np.full(4096, 255, np.uint8)
    rows = checkpoint.read_rows("w.weight", 1, 4, out=buffer)
    assert np.shares_memory(rows, buffer)
    assert np.array_equal(rows, array[1:5])
    assert (buffer[4 * 16 * 4 :] == 255).all()
    with pytest.raises(ShapeMismatchError, match=r"'w\.weight' must be 1-d contiguous uint8 of at least 256 bytes"):
        checkpoint.read_rows("w.weight", 1, 4, out=np.empty(255, np.uint8))
    with pytest.raises(ShapeMismatchError, match="which has 8"):
        checkpoint.read_rows("w.weight", 6, 3)
    with pytest.raises(CheckpointError, match="holds no tensor 'other'"):
        checkpoint.read_rows("other", 0, 1)


def test_integer_tensors_are_listed_and_read_as_bytes_only(tmp_path, write, weights):
    ids = np.arange(77)[None]
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", {"position_ids": ids, "w.weight": weights((4, 4))}))
    assert checkpoint.read_bytes("position_ids").tobytes() == ids.tobytes()
    with pytest.raises(CheckpointError, match="'position_ids' is int64"):
        checkpoint.read_rows("position_ids", 0, 1)


def test_empty_scalar_and_one_element_tensors_are_accepted(tmp_path, write):
    arrays = {"empty": np.empty((0, 4), np.float32), "scalar": np.float32(2), "one": np.ones(1, np.float32)}
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", arrays))
    assert checkpoint.read_bytes("empty").nbytes == 0
    assert checkpoint.read_rows("scalar", 0, 1).tolist() == [[2.0]]
    assert checkpoint.read_rows("one", 0, 1).tolist() == [[1.0]]
    assert len(checkpoint.hash_tensor("empty")) == 32


def test_a_source_that_changes_is_noticed(tmp_path, write, weights):
    path = write(tmp_path / "m.safetensors", {"a.weight": weights((64, 64))})
    checkpoint = open_checkpoint(path)
    later = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(later, later))
    for read in (
        lambda: checkpoint.read_rows("a.weight", 0, 1),
        lambda: checkpoint.read_bytes("a.weight"),
        lambda: checkpoint.hash_tensor("a.weight"),
    ):
        with pytest.raises(CheckpointError, match=r"m\.safetensors: changed while it was read"):
            read()


def test_a_source_that_is_replaced_cut_or_removed_is_noticed(tmp_path, write, weights):
    path = write(tmp_path / "m.safetensors", {"a.weight": weights((64, 64))})
    checkpoint = open_checkpoint(path)
    stamp = path.stat()
    twin = write(tmp_path / "twin.safetensors", {"a.weight": weights((64, 64), seed=1)})
    os.utime(twin, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    twin.replace(path)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.read_rows("a.weight", 0, 1)
    checkpoint = open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.read_rows("a.weight", 0, 64)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more"):
        checkpoint.read_rows("a.weight", 0, 1)


def test_listing_twenty_gigabytes_reads_headers_only(tmp_path, sparse_file, write_json):
    weight_map = {}
    for number in range(1, 6):
        name = f"model-{number:05}-of-00005.safetensors"
        tensors = {f"blocks.{number}.{i}.weight": ((4096, 8192), "F32", 4) for i in range(30)}
        sparse_file(tmp_path / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    before = _read_nbytes()
    start = time.perf_counter()
    checkpoint = open_checkpoint(tmp_path)
    elapsed = time.perf_counter() - start
    assert checkpoint.n_bytes == 150 * 4096 * 8192 * 4 > 20e9
    assert elapsed < 10
    assert _read_nbytes() - before < 1_000_000
    assert not checkpoint.read_rows("blocks.5.29.weight", 4095, 1).any()


def _read_nbytes():
    with Path("/proc/self/io").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("rchar"))


def test_broken_config_beside_good_weights_names_the_file(tmp_path, write, write_json, weights):
    write(tmp_path / "model.safetensors", {"a.weight": weights((2, 4))})
    for text, message in (
        ("{", "config.json: not valid JSON"),
        ("[]", "config.json: the top level must be a JSON object"),
        ('{"a": 1, "a": 2}', "config.json: the key 'a' stands twice"),
        ('{"_class_name": 5}', "config.json: _class_name must be a string"),
        ('{"architectures": "LLaDA"}', "config.json: architectures must be a list"),
        ('{"a":' * 40 + "1" + "}" * 40, "config.json: nested deeper than 32"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "config.json: larger than the 1,048,576 bytes"),
    ):
        write_json(tmp_path / "config.json", text)
        with pytest.raises(MetadataError, match=message):
            open_checkpoint(tmp_path)
