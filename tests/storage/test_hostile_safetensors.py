"""What strangers' files may contain. Every case ends in our own error, quickly and with little memory."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from arrowquant_nb.errors import ArrowQuantError, CheckpointError
from arrowquant_nb.storage.checkpoint import open_checkpoint

F32 = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'


@pytest.mark.parametrize("content", [b"", b"abcd", b"\0" * 7])
def test_empty_and_tiny_files(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (empty file|\d bytes are too few)"):
        open_checkpoint(path)


@pytest.mark.parametrize("length", [3, 100_000_001, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_is_checked_before_anything_is_allocated(raw_file, length):
    path = raw_file(b"{}", length=length)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=rf"claims a header of {length:,} bytes"):
        open_checkpoint(path)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"{" + b'"\xff\xfe":1}',
        b"\xef\xbb\xbf{}",
        b'{"a":5}',
        b'{"a":{' + F32 + b"},}",
        b'{"__metadata__":{"a":1},"a":{' + F32 + b"}}",
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b"[" * 100_000,
        b'{"\\ud800":{' + F32 + b"}}",
    ],
)
def test_headers_that_are_no_header(raw_file, header):
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        open_checkpoint(raw_file(header, b"\0" * 4))


def cases(info):
    return {
        "truncated body": ({"a": info([4], 0, 16)}, 12),
        "trailing bytes": ({"a": info([4], 0, 16)}, 20),
        "overlap": ({"a": info([4], 0, 16), "b": info([4], 8, 24)}, 24),
        "hole": ({"a": info([2], 0, 8), "b": info([2], 16, 24)}, 24),
        "reversed offsets": ({"a": info([4], 16, 0)}, 16),
        "size mismatch": ({"a": info([3], 0, 16)}, 16),
        "dim product overflow": ({"a": info([2**62, 8], 0, 16)}, 16),
        "dim beyond 64 bits": ({"a": info([2**70], 0, 16)}, 16),
        "negative dim": ({"a": info([-4], 0, 16)}, 16),
        "fractional dim": ({"a": info([4.0], 0, 16)}, 16),
        "negative offset": ({"a": info([4], -16, 0)}, 16),
        "unknown dtype": ({"a": info([4], 0, 16, "Q4_K")}, 16),
        "shape is no list": ({"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}}, 16),
        "no offsets": ({"a": {"dtype": "F32", "shape": [4]}}, 16),
        "three offsets": ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}}, 16),
    }


@pytest.mark.parametrize("case", cases(lambda *_: None))
def test_damaged_layouts(raw_file, info, case):
    header, n_bytes = cases(info)[case]
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a valid safetensors file"):
        open_checkpoint(raw_file(header, b"\0" * n_bytes))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "F8_E4M3FNUZ"])
def test_dtypes_that_nobody_can_read_back_are_errors(raw_file, info, dtype):
    n_bytes = {"F4": 2, "F6_E2M3": 3}.get(dtype, 4)
    with pytest.raises(CheckpointError, match=rf"'a' is stored as {dtype}.*float checkpoint"):
        open_checkpoint(raw_file({"a": info([4], 0, n_bytes, dtype)}, b"\0" * n_bytes))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{' + F32 + b'},"a":{' + F32 + b"}}",
        b'{"a":{' + F32 + b'},"\\u0061":{' + F32 + b"}}",
        b'{"__metadata__":{"a":"1","a":"2"},"b":{' + F32 + b"}}",
    ],
)
def test_a_key_that_stands_twice_is_an_error(raw_file, header):
    with pytest.raises(CheckpointError, match="the header names 'a' twice"):
        open_checkpoint(raw_file(header, b"\0" * 4))


def test_no_tensors_at_all(raw_file):
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_checkpoint(raw_file(b"{}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03\0\0\0" + b"\0" * 40, "a GGUF file"),
        (b"PK\x03\x04" + b"\0" * 40, "PyTorch pickle; nothing in it is executed"),
        (b"\x80\x02}q\0." + b"\0" * 40, "a Python pickle"),
        (b"PAR1" + b"\0" * 40, "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html><html>" + b"x" * 40, "an HTML page"),
    ],
)
def test_other_formats_under_a_safetensors_name_are_named(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(raw_file, info):
    """640 = 0x280: the file starts with 80 02, as protocol-2 pickles do."""
    for length in (0x280, 0x380, 0x480, 0x580):
        header = json.dumps({"a": info([1], 0, 4)}).encode().ljust(length)
        assert list(open_checkpoint(raw_file(header, b"\0" * 4)).entries) == ["a"]


HOSTILE_NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "a\nb\r\x1b[31m",
    "x" * 10_000,
    "\u0430.weight",
    "a.weight",
    "",
    ".",
    "A.weight",
    "<script>alert(1)</script>",
    "a.weight ",
    "\u202ethgiew",
    "weight",
    "a/b\\c",
]


def test_names_are_data_only(tmp_path, write):
    tensors = {name: np.full((2, 2), i, np.float32) for i, name in enumerate(HOSTILE_NAMES)}
    checkpoint = open_checkpoint(write(tmp_path / "model.safetensors", tensors))
    assert list(checkpoint.entries) == HOSTILE_NAMES
    for i, name in enumerate(HOSTILE_NAMES):
        assert (checkpoint.read_rows(name, 0, 2) == i).all()


def test_messages_escape_and_shorten_names(tmp_path, write):
    name = "a\n\x1b[31m" + "x" * 10_000
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", {name: np.ones((2, 2), np.int64)}))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read_rows(name, 0, 1)
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 500


def test_a_pipe_or_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            open_checkpoint(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permission_denied(tmp_path, write):
    path = write(tmp_path / "model.safetensors", {"a": np.ones(1, np.float32)})
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(path)


def test_a_header_of_a_million_empty_tensors_is_refused_quickly(tmp_path):
    text = "{" + ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(400_000)) + "}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="more than 250,000 tensors"):
        open_checkpoint(path)
    assert time.perf_counter() - start < 10


def test_the_largest_header_allowed_stays_within_memory(tmp_path):
    """100 MB of header in one name: refused or listed, in a child of at most 1 GB of address space above its start."""
    text = '{"' + "x" * 99_999_900 + '":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    program = (
        "import resource, sys, time\n"
        "from arrowquant_nb.storage.checkpoint import open_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.perf_counter()\n"
        "open_checkpoint(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.safetensors")], capture_output=True, text=True, check=True
    )
    grown_kib, seconds = done.stdout.split()
    assert int(grown_kib) < 1_000_000
    assert float(seconds) < 60


GOOD = save({"a.weight": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.ones(3, np.float16)}, {"format": "pt"})


@settings(max_examples=150)
@given(st.data())
def test_mutated_files_open_or_raise_our_error(tmp_path_factory, data):
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        position = data.draw(st.integers(0, max(0, len(content) - 1)))
        if kind == "flip" and content:
            content[position] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[position:]
        elif kind == "insert":
            content[position:position] = data.draw(st.binary(max_size=9))
        else:
            content[position:position] = content[position : position + 40]
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(bytes(content))
    try:
        checkpoint = open_checkpoint(path)
        for name, entry in checkpoint.entries.items():
            assert entry.offset + entry.nbytes <= len(content)
            checkpoint.read_bytes(name)
    except ArrowQuantError as error:
        told = str(error)
    else:
        return
    assert "model.safetensors" in told


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(
            ["_class_name", "architectures", "model_type", "_name_or_path", "unet", "modality", "weight_map"]
        ),
        json_values,
    )
)
def test_any_json_beside_the_weights_is_read_or_refused(tmp_path_factory, fields):
    root = tmp_path_factory.mktemp("json")
    (root / "model.safetensors").write_bytes(GOOD)
    text = json.dumps(fields)
    for name in ("config.json", "metadata.json"):
        (root / name).write_text(text)
    try:
        open_checkpoint(root)
    except ArrowQuantError as error:
        told = str(error)
    else:
        return
    assert ".json" in told


def test_reading_leaves_no_file_open(tmp_path, write):
    path = write(tmp_path / "m.safetensors", {"a.weight": np.ones((64, 64), np.float32)})
    limit = len(list(Path("/proc/self/fd").iterdir()))
    checkpoint = open_checkpoint(path)
    for _ in range(50):
        checkpoint.read_rows("a.weight", 0, 64)
    assert len(list(Path("/proc/self/fd").iterdir())) <= limit
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > limit
