"""Checkpoints written byte by byte, so that a test can also write what no library would."""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def safetensors_bytes(tensors, metadata=None):
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def write():
    """Write tensors (and JSON objects) under a folder: write(path, {"a.weight": array}, metadata=None)."""

    def writer(path, tensors, metadata=None):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors_bytes(tensors, metadata))
        return path

    return writer


@pytest.fixture
def write_json():
    def writer(path, value):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return writer


@pytest.fixture
def weights():
    """Reproducible values: weights((4, 8), "bfloat16")."""

    def make(shape, dtype="float32", seed=0):
        values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return values.astype(getattr(ml_dtypes, dtype, dtype))

    return make


@pytest.fixture
def raw_file(tmp_path):
    """Write a file with any header text: raw_file(header, body, length=None)."""

    def writer(header, body=b"", length=None, name="model.safetensors"):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
        return path

    return writer


def entry_json(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def info():
    return entry_json


@pytest.fixture
def sparse_file():
    """A large file that takes no disk: sparse_file(path, {name: (shape, dtype code, itemsize)})."""

    def writer(path, tensors):
        header, offset = {}, 0
        for name, (shape, code, itemsize) in tensors.items():
            nbytes = math.prod(shape) * itemsize
            header[name] = entry_json(list(shape), offset, offset + nbytes, code)
            offset += nbytes
        text = json.dumps(header).encode()
        with Path(path).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        return Path(path)

    return writer
