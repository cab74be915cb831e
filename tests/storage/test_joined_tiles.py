"""A tensor stored in several tiles comes back as one, value for value."""

import dataclasses

import numpy as np
import pytest

from arrowquant_nb import ShapeMismatchError, ValidationError, quantize_tensor
from arrowquant_nb.quantizers.spatial import SpatialQuantizer
from arrowquant_nb.storage.joined_tiles import equalization_dtype, join_tiles, scale_dtype
from arrowquant_nb.storage.lazy_tensor import LazyTensor

COLUMNS = 96


def stored(tiles, **given):
    """A stored tensor whose tiles are in memory."""
    payloads, references, start = [], [], 0
    for tile in tiles:
        arrays = {"data": tile.packed, "scales": tile.scales, "zero_points": tile.zero_points}
        arrays |= {"low_rank_a": tile.low_rank_a, "equalization": tile.equalization}
        if start == 0:
            arrays["low_rank_b"] = tile.low_rank_b
        content = {name: array.tobytes() for name, array in arrays.items() if array is not None}
        payloads.append(content)
        references.append({"rows": [start, tile.rows], **{name: [0, len(data)] for name, data in content.items()}})
        start += tile.rows

    class Source:
        def payloads(self, _, reference):
            at = next(i for i, r in enumerate(references) if r["rows"][0] == reference.row_start)
            return {name: memoryview(data) for name, data in payloads[at].items()}

    first = tiles[0]
    rank = {} if first.low_rank_a is None else {"low_rank": first.low_rank_a.shape[1]}
    entry = {
        "shape": [start, COLUMNS], "dtype": "float32", "bit_width": first.bit_width, "method": first.method,
        "grid": first.grid, "group_size": first.group_size, "file": "f", "source_file": "a.safetensors",
        "source_xxh3": "", "tiles": references, **rank, **given,
    }  # fmt: skip
    return LazyTensor(Source(), "x", entry)


@pytest.mark.parametrize(
    ("bit_width", "group_size", "method", "scale_format"),
    [(4, 32, "rtn", "float16"), (8, 64, "uls", "float16"), (2, 32, "r2q", "float16"), (4, 32, "uls", "k"),
     (2, 16, "uls", "k")],
)  # fmt: skip
@pytest.mark.parametrize("huge", [False, True])
def test_tiles_of_different_scales_join(bit_width, group_size, method, scale_format, huge):
    weight = np.random.default_rng(0).standard_normal((12, COLUMNS)).astype(np.float32)
    if huge:
        weight[8:] *= 1e9  # float16 cannot hold these scales
    tiles = [quantize_tensor(part, bit_width, group_size, method, scale_format) for part in (weight[:8], weight[8:])]
    tensor = stored(tiles)
    assert scale_dtype(tensor) == (np.float32 if huge else np.float16)
    assert equalization_dtype(tensor) is None
    whole = join_tiles(tensor)
    assert whole.shape == (12, COLUMNS)
    expected = np.concatenate([tile.dequantize() for tile in tiles])
    np.testing.assert_array_equal(whole.dequantize(), expected)


def test_branch_and_equalization_join_and_must_agree():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((12, COLUMNS)).astype(np.float32)
    scales = np.exp2(np.arange(COLUMNS) % 5 - 2).astype(np.float32)
    quantizer = SpatialQuantizer(4, 32)
    b = rng.standard_normal((2, COLUMNS)).astype(np.float16)

    def tile(part, equalization):
        a = rng.standard_normal((len(part), 2)).astype(np.float16)
        return dataclasses.replace(quantizer.per_group_quantize("x", part, equalization), low_rank_a=a, low_rank_b=b)

    tiles = [tile(weight[:5], scales), tile(weight[5:], scales)]
    tensor = stored(tiles)
    assert equalization_dtype(tensor) == np.float16
    np.testing.assert_array_equal(join_tiles(tensor).dequantize(), np.concatenate([t.dequantize() for t in tiles]))
    with pytest.raises(ValidationError, match="equalized differently"):
        join_tiles(stored([tiles[0], tile(weight[5:], 2 * scales)]))


def test_a_kept_tensor_has_no_tiles_to_join():
    entry = {
        "shape": [1, 2], "dtype": "float32", "bit_width": 16, "method": "", "grid": "", "group_size": 0, "file": "f",
        "source_file": "a.safetensors", "source_xxh3": "", "tiles": [{"rows": [0, 1], "data": [0, 8]}],
    }  # fmt: skip
    with pytest.raises(ShapeMismatchError, match="is kept"):
        join_tiles(LazyTensor(None, "x", entry))


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_tiles_of_a_kept_tensor_are_joined_and_may_be_written_where_their_files_may(kind):
    weight = np.arange(5 * COLUMNS, dtype=np.float32).reshape(5, COLUMNS)

    class Source:
        def payloads(self, _, reference):
            rows = weight[reference.row_start : reference.row_start + reference.row_count]
            return {"data": memoryview(kind(rows.tobytes()))}

    entry = {
        "shape": [5, COLUMNS], "dtype": "float32", "bit_width": 16, "method": "", "grid": "", "group_size": 0,
        "file": "f", "source_file": "a.safetensors", "source_xxh3": "",
        "tiles": [{"rows": [s, n], "data": [0, 4 * n * COLUMNS]} for s, n in ((0, 2), (2, 2), (4, 1))],
    }  # fmt: skip
    joined = LazyTensor(Source(), "t", entry).dequantize()
    assert np.array_equal(joined, weight)
    assert joined.flags.writeable == (kind is bytearray)
