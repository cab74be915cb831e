"""A folded source delivers the folded tensors, tile by tile or whole, and all others as they are."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from arrowquant_nb import open_checkpoint
from arrowquant_nb.quantizers.folded_tensor import FoldedTensor
from arrowquant_nb.storage.folded_checkpoint import folded_checkpoint

RNG = np.random.default_rng(0)
SCALES, OTHERS = (np.exp(RNG.normal(0, 1, n)).astype(np.float32) for n in (12, 20))
TENSORS = {
    "w": RNG.standard_normal((12, 20)).astype(ml_dtypes.bfloat16),
    "b": RNG.standard_normal(12).astype(np.float16),
    "conv": RNG.standard_normal((12, 5, 2, 2)).astype(np.float32),
    "same": RNG.standard_normal((3, 4)).astype(ml_dtypes.bfloat16),
}
FOLDING = {
    "w": FoldedTensor(((SCALES, None),), OTHERS),
    "b": FoldedTensor(((SCALES, 1 - SCALES),)),
    "conv": FoldedTensor((), OTHERS),
}
FOLDED = {
    "w": (TENSORS["w"].astype(np.float32) / SCALES[:, None]) * OTHERS,
    "b": (TENSORS["b"].astype(np.float32) + (1 - SCALES)) / SCALES,
    "conv": TENSORS["conv"] * OTHERS.reshape(5, 2, 2),
    "same": TENSORS["same"],
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    save_file(TENSORS, path)
    with open_checkpoint(path) as source:
        yield source, folded_checkpoint(source, FOLDING)


def test_nothing_folded_is_the_source_itself(pair):
    assert folded_checkpoint(pair[0], {}) is pair[0]


@pytest.mark.parametrize("name", FOLDED)
def test_every_tensor_comes_as_it_should(pair, name):
    source, folded = pair
    entry = folded.entries[name]
    matrix = FOLDED[name].reshape(entry.rows, entry.columns)
    assert np.array_equal(folded.read_rows(name, 0, entry.rows), matrix)
    assert folded.read_bytes(name).tobytes() == FOLDED[name].tobytes()
    assert folded.hash_tensor(name) == source.hash_tensor(name)  # of what lies in the source
    dtype = str(source.entries[name].dtype)
    assert entry.dtype == dtype
    changed = name in FOLDING
    assert (entry.kept_dtype, entry.value_dtype, entry.verbatim) == (
        ("float32", "float32", False) if changed else (dtype, dtype, True)
    )


@given(st.sampled_from(sorted(FOLDED)), st.data())
@settings(max_examples=40, deadline=None)
def test_any_part_is_that_part_of_the_whole(pair, name, data):
    folded = pair[1]
    entry = folded.entries[name]
    matrix = FOLDED[name].reshape(entry.rows, entry.columns)
    start = data.draw(st.integers(0, entry.rows - 1))
    count = data.draw(st.integers(1, entry.rows - start))
    part = matrix[start : start + count]
    buffer = np.empty(part.nbytes + 8, np.uint8)
    assert np.array_equal(folded.read_rows(name, start, count, buffer), part)
    assert buffer[: part.nbytes].tobytes() == part.tobytes()
    raw = FOLDED[name].tobytes()
    first = data.draw(st.integers(0, len(raw) - 1))
    n = data.draw(st.integers(1, len(raw) - first))
    assert folded.read_bytes(name, first, n).tobytes() == raw[first : first + n]


@given(st.integers(0, 11), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_undoing_gives_the_rows_back(start, count):
    for name, tensor in FOLDING.items():
        matrix = TENSORS[name].astype(np.float32).reshape(12, -1)
        part = matrix[start : start + count]
        found = tensor.undone(tensor.rows(part, start), start)
        assert np.abs(found - part).max(initial=0) <= 1e-5 * (1 + np.abs(part).max(initial=0))
