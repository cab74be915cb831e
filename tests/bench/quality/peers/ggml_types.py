"""The K-quants and plain blocks of ggml, by its own C functions: Q4_K and Q2_K are what llama.cpp and others write."""

import ctypes
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from protocol import Format, serve

BLOCK = 256
# name: (type of ggml.h, bits of its family, bytes of a block, weights of a block)
TYPES = {
    "Q8_0": (8, 8, 34, 32),
    "Q4_0": (2, 4, 18, 32),
    "Q4_1": (3, 4, 20, 32),
    "Q4_K": (12, 4, 144, 256),
    "IQ4_XS": (23, 4, 136, 256),
    "Q2_K": (10, 2, 84, 256),
}


def library() -> ctypes.CDLL:
    """Load the library that holds the reference quantizers."""
    (folder,) = find_spec("libggml").submodule_search_locations
    found = ctypes.CDLL(str(min(Path(folder).glob("**/libggml-base.so"))))
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    sizes = [ctypes.c_int64] * 3
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *sizes, ctypes.c_void_p]
    return found


GGML = library()


def as_rows(weight: np.ndarray) -> np.ndarray:
    """Rows of 256 and more stay; narrower ones are joined, as no block spans a row."""
    return weight if weight.shape[1] % BLOCK == 0 else weight.reshape(-1, BLOCK)


def quantize(code: int, block_nbytes: int, block: int, weight: np.ndarray) -> np.ndarray:
    """Fill blocks."""
    rows = as_rows(weight)
    out = np.empty(weight.size // block * block_nbytes, np.uint8)
    written = GGML.ggml_quantize_chunk(code, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
    if written != out.nbytes:
        raise RuntimeError(f"wrote {written} of {out.nbytes} bytes")
    return out


def decode(name: str, stored: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Decode by the library's own function."""
    lower = {"Q": "q", "I": "i", "X": "x", "S": "s"}  # q4_K keeps its capital
    function = getattr(GGML, f"dequantize_row_{''.join(lower.get(c, c) for c in name)}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    out = np.empty(weight.size, np.float32)
    function(stored.ctypes.data, out.ctypes.data, weight.size)
    return out


def form(name: str) -> Format:
    """One type of ggml."""
    code, bits, block_nbytes, block = TYPES[name]
    return Format(
        name,
        bits,
        lambda weight: quantize(code, block_nbytes, block, weight),
        lambda stored, weight: decode(name, stored, weight),
        lambda stored, weight: 8 * stored.nbytes / weight.size,
    )


serve(f"libggml-python {version('libggml-python')}", [form(name) for name in TYPES])
