"""Every grid, bit for bit, against the slow oracle of tests/reference.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from arrowquant_nb.quantizers import quantize_array

_spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "reference.py")
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

METHODS = ["rtn", "mse", "uls", "hqq", "r2q"]
PACKED_ZEROS = ["rtn", "mse"]


def weights(columns, seed, offset=0.0, scale=0.05):
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, (2, columns)) * scale + offset).astype(np.float32)


def bits_of(method):
    return 2 if method == "r2q" else 4


def check(array, bits, group_size, method, gain=True, importance=None):
    tensor = quantize_array(array, bits, group_size, method, gain, importance)
    wide = tensor.scales.dtype == np.float32
    total = np.zeros(3)
    for row, values in enumerate(array.astype(np.float32)):
        # the kernels see importance times a power of two, largest value in [1, 2): no choice depends on it
        v = None if importance is None else importance / 2.0 ** np.floor(np.log2(importance.max()))
        expected = reference.quantize_row(values, bits, group_size, method, gain, v, wide)
        assert tensor.packed[row].tobytes() == reference.pack(expected.codes, bits)
        assert tensor.scales[row].astype(np.float32).tolist() == np.array(expected.scales, np.float32).tolist()
        if method not in PACKED_ZEROS:
            assert tensor.zero_points[row].astype(np.float32).tolist() == [float(m) for m in expected.zeros]
        else:
            assert tensor.zero_points[row].tobytes() == reference.pack([int(z) for z in expected.zeros], bits)
        total += expected.sums
    found = tensor.statistics
    assert [found.sum_ww, found.sum_wq, found.sum_ee] == pytest.approx(total.tolist(), rel=1e-15, abs=0.0)
    return tensor


K_FORMATS = [(2, 16), (2, 32), (4, 32), (4, 64)]


def check_k(array, bits, group_size, gain=True, importance=None):
    tensor = quantize_array(array, bits, group_size, "uls", gain, importance, scale_format="k")
    n_blocks, n_groups = -(-array.shape[1] // 256), -(-array.shape[1] // group_size)
    integer_bits = {2: 4, 4: 6}[bits]
    item = (tensor.scales.shape[1] - -(-n_groups * integer_bits // 8)) // n_blocks
    kind = {2: np.float16, 4: np.float32}[item]
    total = np.zeros(3)
    for row, values in enumerate(array):
        v = None if importance is None else importance / 2.0 ** np.floor(np.log2(importance.max()))
        expected = reference.quantize_row_k(values, bits, group_size, gain, v, item == 4)
        for found, floats, integers in (
            (tensor.scales[row], expected.d, expected.sc),
            (tensor.zero_points[row], expected.dmin, expected.mn),
        ):
            assert found.tobytes() == np.array(floats, kind).tobytes() + reference.pack(integers, integer_bits)
        assert tensor.packed[row].tobytes() == reference.pack(expected.codes, bits)
        total += expected.sums
    found = tensor.statistics
    assert [found.sum_ww, found.sum_wq, found.sum_ee] == pytest.approx(total.tolist(), rel=1e-15, abs=0.0)
    return tensor


@pytest.mark.parametrize(("bits", "group_size"), K_FORMATS)
@pytest.mark.parametrize("columns", [256, 7, 300])
def test_k_format_bytes_and_sums(bits, group_size, columns):
    check_k(weights(columns, seed=columns + bits)[:1], bits, group_size)


@pytest.mark.parametrize(("bits", "group_size"), K_FORMATS)
def test_k_format_with_importance_some_of_it_nothing(bits, group_size):
    importance = (np.random.default_rng(3).random(200) ** 4 * 1e-3).astype(np.float32)
    importance[32:100] = 0.0
    check_k(weights(200, seed=1), bits, group_size, False, importance)


@pytest.mark.parametrize("offset", [0.2, 3.0, -3.0])
def test_k_format_of_one_sided_weights(offset):
    check_k(weights(140, seed=2, offset=offset), 4, 32, gain=False)


@pytest.mark.parametrize("scale", [1e-12, 1e-38, 1e12, 1e30])
def test_k_format_has_float32_blocks_where_float16_does_not_reach(scale):
    tensor = check_k(weights(80, seed=4, scale=scale), 4, 32)
    assert tensor.scales.shape[1] == 4 + 3
    assert tensor.statistics.sqnr_db > 15


@pytest.mark.parametrize(("method", "bits"), [(m, b) for m in METHODS for b in (2, 4, 8) if m != "r2q" or b == 2])
@pytest.mark.parametrize("columns", [64, 37, 80])
def test_bytes_and_sums(method, bits, columns):
    check(weights(columns, seed=columns + bits), bits, 32, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group_size", [16, 48, 64, 256])
def test_group_sizes(method, group_size):
    check(weights(group_size + 9, seed=group_size), bits_of(method), group_size, method, gain=False)


@pytest.mark.parametrize("method", ["mse", "uls", "r2q"])
def test_importance(method):
    importance = (np.random.default_rng(3).random(40) ** 4 * 1e-3).astype(np.float32)
    check(weights(40, seed=1), 2, 32, method, importance=importance)


@pytest.mark.parametrize("method", METHODS)
def test_offset_weights(method):
    check(weights(48, seed=2, offset=3.0), bits_of(method), 32, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-12, 1e-38, 1e8, 1e30])
def test_scales_beyond_float16_are_float32(method, scale):
    tensor = check(weights(40, seed=4, scale=scale), bits_of(method), 32, method)
    assert tensor.scales.dtype == np.float32
    assert tensor.statistics.sqnr_db > (8 if method == "r2q" else 15)


def test_rows_may_differ_by_many_orders():
    array = weights(64, seed=5)
    array[1] *= np.float32(1e-3)
    check(array, 4, 32, "uls")
    check(array, 2, 32, "r2q")


def test_groups_without_importance():
    importance = np.ones(64, np.float32)
    importance[32:] = 0.0
    for method in ("uls", "r2q"):
        check(weights(64, seed=6), 2, 32, method, importance=importance)
