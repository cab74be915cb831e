"""The k format: integer scales and minima under one float pair per 256 weights, as in llama.cpp's Q4_K and Q2_K."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import quantize_tensor
from arrowquant_nb._kernels import k_format
from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers import Layout, quantize_array

FORMATS = [(2, 16), (2, 32), (4, 32), (4, 64)]
BITS_PER_WEIGHT = {(2, 16): 2.625, (2, 32): 2.375, (4, 32): 4.5, (4, 64): 4.3125}
few = settings(max_examples=40)


def quantize(w, bits, group_size, gain=False, **options):
    return quantize_array(w, bits, group_size, "uls", gain, scale_format="k", **options)


def heavy_tailed(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_t(5, (rows, columns)) * np.exp(rng.normal(0, 0.3, (rows, 1)))).astype(np.float32)


def codes_of(tensor):
    per_byte = 8 // tensor.bit_width
    codes = np.stack([tensor.packed >> (i * tensor.bit_width) for i in range(per_byte)], axis=-1)
    return (codes & (2**tensor.bit_width - 1)).reshape(tensor.rows, -1)[:, : tensor.columns]


def parameters_of(tensor):
    """d, sc, dmin, mn."""
    sizes = (tensor.columns, tensor.bit_width, tensor.group_size)
    return (*k_format.split(tensor.scales, *sizes), *k_format.split(tensor.zero_points, *sizes))


@st.composite
def matrices(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 600)))
    w = rng.standard_t(draw(st.sampled_from([2, 5, 100])), shape) * np.exp2(rng.uniform(-4, 4, (shape[0], 1)))
    match draw(st.sampled_from(["plain", "one sided", "below zero", "sparse", "outlier"])):
        case "one sided":
            w = np.abs(w)
        case "below zero":
            w = -np.abs(w) - 1
        case "sparse":
            w[rng.random(shape) < 0.7] = 0.0
        case "outlier":
            w[0, 0] = 300.0
    return w.astype(np.float32)


def test_integers_lie_behind_the_floats_low_bits_first():
    """Worked by hand: 1.0 is 0x3C00; 6-bit 1, 2, 3, 63 are 0b111111_000011_000010_000001."""
    rows = k_format.join(np.ones((1, 1), np.float32), np.array([[1, 2, 3, 63, 5]], np.uint8), 6, wide=False)
    assert rows.tolist() == [[0x00, 0x3C, 0b10_000001, 0b0011_0000, 0b111111_00, 5]]
    floats, integers = k_format.split(rows, 5 * 32, 4, 32)
    assert (floats.tolist(), integers.tolist()) == ([[1.0]], [[1, 2, 3, 63, 5]])


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_a_grid_that_the_format_can_hold_is_found_exactly(bits, group_size):
    """w = d sc code - dmin mn, with every code in every group: nothing is lost."""
    n, most = 2**bits - 1, {2: 15, 4: 63}[bits]
    groups = 256 // group_size
    code = np.tile(np.arange(group_size) % (n + 1), groups)
    sc = np.repeat(most - np.arange(groups) % 4, group_size)
    mn = np.repeat(most - np.arange(groups) % 3, group_size)
    w = (0.5 * sc * code - 0.25 * mn).astype(np.float32)[None]
    tensor = quantize(w, bits, group_size)
    assert np.array_equal(tensor.dequantize(), w)
    assert tensor.statistics.sum_ee == 0.0
    d, found_sc, dmin, found_mn = parameters_of(tensor)
    assert (float(d[0, 0]), float(dmin[0, 0])) == (0.5, 0.25)
    assert np.array_equal(np.repeat(found_sc[0], group_size), sc)
    assert np.array_equal(np.repeat(found_mn[0], group_size), mn)


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_zeros_stay_zeros(bits, group_size):
    tensor = quantize(np.zeros((2, 300), np.float32), bits, group_size, gain=True)
    assert not tensor.dequantize().any()
    assert not tensor.packed.any()
    assert not tensor.scales.any()


@pytest.mark.parametrize("value", [0.37, -0.5])
def test_a_row_of_one_value_keeps_it_to_float16(value):
    w = np.full((1, 256), value, np.float32)
    assert quantize(w, 4, 32).dequantize() == pytest.approx(w, rel=2.0**-10)


@given(matrices(), st.sampled_from(FORMATS), st.booleans())
@few
def test_decoding_is_the_formula(w, layout, gain):
    tensor = quantize(w, *layout, gain)
    d, sc, dmin, mn = (a.astype(np.float32) for a in parameters_of(tensor))
    assert (d >= 0).all()
    assert (dmin >= 0).all()  # so that no minimum is above 0
    per_block = 256 // tensor.group_size
    scale, minimum = (
        np.repeat(np.repeat(a, per_block, 1)[:, : b.shape[1]] * b, tensor.group_size, 1)[:, : tensor.columns]
        for a, b in ((d, sc), (dmin, mn))
    )
    assert np.array_equal(tensor.dequantize(), scale * codes_of(tensor) - minimum)


@given(matrices(), st.sampled_from(FORMATS))
@few
def test_codes_are_the_nearest_of_the_stored_grid(w, layout):
    tensor = quantize(w, *layout)
    decoded = tensor.dequantize().astype(np.float64)
    d, sc, *_ = parameters_of(tensor)
    step = np.repeat(np.repeat(d, 256 // tensor.group_size, 1)[:, : sc.shape[1]] * sc, tensor.group_size, 1)
    step = step[:, : tensor.columns].astype(np.float64)
    codes, error = codes_of(tensor), w - decoded
    slack = 1e-5 * (np.abs(w) + np.abs(decoded))
    assert (error <= step / 2 + slack)[(codes < 2**tensor.bit_width - 1) & (step > 0)].all()
    assert (error >= -step / 2 - slack)[codes > 0].all()
    assert not codes[step == 0].any()


@given(matrices(), st.sampled_from(FORMATS))
@few
def test_statistics_are_those_of_the_decoded_weights(w, layout):
    tensor = quantize(w, *layout, gain=True)
    x, q = w.astype(np.float64), tensor.dequantize().astype(np.float64)
    found = tensor.statistics
    assert found.sum_ww == pytest.approx((x * x).sum(), rel=1e-5)
    assert found.sum_wq == pytest.approx((x * q).sum(), rel=1e-5, abs=1e-5 * (x * x).sum())
    assert found.sum_ee == pytest.approx(((q - x) ** 2).sum(), rel=1e-5, abs=1e-10 * (x * x).sum())
    assert found.w_absmax == np.abs(w).max()


@given(matrices(), st.sampled_from(FORMATS), st.integers(-3, 3))
@few
def test_scaling_by_a_power_of_two_scales_the_result(w, layout, k):
    one, other = quantize(w, *layout), quantize(w * np.float32(2.0**k), *layout)
    d, _, dmin, _ = parameters_of(one)
    if min(d.min(), dmin[dmin > 0].min(initial=1)) > 2.0**-10:  # far from where float16 runs out of bits
        assert one.packed.tobytes() == other.packed.tobytes()
        assert np.array_equal(one.dequantize() * np.float32(2.0**k), other.dequantize())


@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMATS), st.randoms(use_true_random=False))
@few
def test_rows_and_blocks_are_independent(seed, layout, random):
    w = heavy_tailed(3, 768, seed)
    rows, blocks = list(range(3)), list(range(3))
    random.shuffle(rows)
    random.shuffle(blocks)
    shuffled = np.ascontiguousarray(w.reshape(3, 3, 256)[rows][:, blocks].reshape(w.shape))
    one, other = (quantize(a, *layout).dequantize() for a in (w, shuffled))
    assert np.array_equal(one.reshape(3, 3, 256)[rows][:, blocks].reshape(w.shape), other)


@given(matrices(), st.sampled_from(FORMATS))
@few
def test_gain_correction_makes_the_rows_unbiased_and_moves_floats_only(w, layout):
    plain, fixed = quantize(w, *layout), quantize(w, *layout, gain=True)
    assert plain.packed.tobytes() == fixed.packed.tobytes()
    before, after = parameters_of(plain), parameters_of(fixed)
    assert np.array_equal(before[1], after[1])
    assert np.array_equal(before[3], after[3])
    for row, x in enumerate(w.astype(np.float64)):
        wq = x @ plain.dequantize()[row].astype(np.float64)
        floats = np.concatenate([before[0][row], before[2][row]])
        if wq > 0 and 0.5 < (x @ x) / wq < 2.0 and floats[floats > 0].min(initial=1) > 2.0**-14:
            assert x @ fixed.dequantize()[row].astype(np.float64) == pytest.approx(x @ x, rel=2**-8)


def test_importance_moves_the_error_to_columns_that_do_not_matter():
    w = heavy_tailed(20, 256)
    v = np.where(np.arange(256) % 16 < 4, 100.0, 0.01).astype(np.float32)
    plain, weighted = (quantize(w, 2, 16, importance=i).dequantize() for i in (None, v))
    matters = np.arange(256) % 16 < 4
    assert ((weighted - w)[:, matters] ** 2).sum() < 0.6 * ((plain - w)[:, matters] ** 2).sum()


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_the_cost_of_integers_is_small_against_a_float_pair_per_group(bits, group_size):
    w = heavy_tailed(64, 1024)
    k, floats = quantize(w, bits, group_size), quantize_array(w, bits, group_size, "uls", False)
    assert k.bits_per_weight == BITS_PER_WEIGHT[bits, group_size] < floats.bits_per_weight
    assert k.statistics.sum_ee < floats.statistics.sum_ee * (1.04 if bits == 4 else 1.08)


@pytest.mark.parametrize(("bits", "group_size", "most"), [(4, 32, 0.086), (2, 16, 0.29)])
def test_relative_error_on_heavy_tailed_rows(bits, group_size, most):
    w = heavy_tailed(96, 3072)
    w[:, [5, 1000, 2999]] *= 8
    statistics = quantize(w, bits, group_size).statistics
    assert np.sqrt(statistics.sum_ee / statistics.sum_ww) < most


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 32), (4, 16), (4, 128), (2, 64), (2, 128), (4, 256)])
def test_other_sizes_are_refused_with_what_there_is(bits, group_size):
    with pytest.raises(ConfigurationError, match=r"INT2 with group_size 16 or 32; INT4 with group_size 32 or 64"):
        quantize(np.ones((2, 256), np.float32), bits, group_size)


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq", "r2q"])
def test_methods_without_a_fit_for_it_are_refused(method):
    with pytest.raises(ConfigurationError, match=f"scale_format k needs method uls: {method}"):
        quantize_array(np.ones((2, 256), np.float32), 4, 32, method, scale_format="k")


def test_an_unknown_scale_format_is_refused():
    with pytest.raises(ConfigurationError, match="scale_format 'K' is not one of float16, k"):
        quantize_array(np.ones((2, 256), np.float32), 4, 32, "uls", scale_format="K")


def test_a_given_result_is_filled():
    w = heavy_tailed(5, 300)
    out = quantize(w[::-1].copy(), 4, 32)
    expected = quantize(w, 4, 32)
    again = quantize(w, 4, 32, out=out)
    assert np.shares_memory(again.scales, out.scales)
    assert again.scales.tobytes() == expected.scales.tobytes()
    with pytest.raises(ShapeMismatchError, match="do not fit float16"):
        quantize(w * np.float32(1e12), 4, 32, out=out)


def test_a_given_result_is_filled_with_a_rotated_matrix():
    w = heavy_tailed(5, 512)
    settings = {"bit_width": 4, "group_size": 32, "scale_format": "k", "rotation": "hadamard"}
    expected = quantize_tensor(w, **settings)
    narrow = quantize(heavy_tailed(5, 512, seed=1), 4, 32)
    wide = quantize(w * np.float32(1e-12), 4, 32)
    assert wide.scales.nbytes > expected.scales.nbytes == narrow.scales.nbytes
    for out in (narrow, wide):
        found = quantize_tensor(w, **settings, out=out)
        assert found.scales is out.scales
        assert np.array_equal(found.dequantize(), expected.dequantize())
    with pytest.raises(ShapeMismatchError, match="do not fit float16"):
        quantize_tensor(w * np.float32(1e-12), **settings, out=narrow)


def test_buffers_of_another_size_are_refused():
    tensor = quantize(heavy_tailed(5, 300), 4, 32)
    layout = Layout(5, 300, 4, 32, "k")
    for wrong in (tensor.scales[:, 1:].copy(), tensor.scales.astype(np.uint16), tensor.scales.view(np.int8)):
        with pytest.raises(ShapeMismatchError, match="scales must be a C-contiguous uint8 array"):
            layout.check_buffers(tensor.packed, wrong, tensor.zero_points)


def q4_k_blocks(codes, d, sc, dmin, mn):
    """Blocks of 256 weights as llama.cpp's `block_q4_K`: d, dmin, twelve bytes of 6-bit pairs, nibbles."""
    blocks = []
    for code, a, s, b, m in zip(codes, d, sc.astype(int), dmin, mn.astype(int), strict=True):
        pairs = [s[j] | (s[j + 4] >> 4) << 6 for j in range(4)] + [m[j] | (m[j + 4] >> 4) << 6 for j in range(4)]
        pairs += [s[j] & 15 | (m[j] & 15) << 4 for j in range(4, 8)]
        halves = code.reshape(4, 2, 32)
        nibbles = halves[:, 0] | halves[:, 1] << 4
        blocks.append(np.array([a, b], np.float16).tobytes() + bytes(pairs) + nibbles.astype(np.uint8).tobytes())
    return np.frombuffer(b"".join(blocks), np.uint8)


def q2_k_blocks(codes, d, sc, dmin, mn):
    """As `block_q2_K`: sixteen pairs of nibbles, 2-bit codes of four groups of 32 in a byte, d, dmin."""
    blocks = []
    for code, a, s, b, m in zip(codes, d, sc, dmin, mn, strict=True):
        quarters = code.reshape(2, 4, 32)
        crumbs = quarters[:, 0] | quarters[:, 1] << 2 | quarters[:, 2] << 4 | quarters[:, 3] << 6
        blocks.append((s | m << 4).tobytes() + crumbs.tobytes() + np.array([a, b], np.float16).tobytes())
    return np.frombuffer(b"".join(blocks), np.uint8)


@pytest.mark.parametrize(
    ("bits", "group_size", "name", "pack"), [(4, 32, "Q4_K", q4_k_blocks), (2, 16, "Q2_K", q2_k_blocks)]
)
def test_ggufs_own_decoder_gives_the_same_weights(bits, group_size, name, pack):
    """Nothing is rounded again on the way into the blocks of llama.cpp."""
    gguf = pytest.importorskip("gguf")
    w = heavy_tailed(6, 1024)
    tensor = quantize(w, bits, group_size, gain=True)
    d, sc, dmin, mn = parameters_of(tensor)
    per_block = 256 // group_size
    blocks = pack(
        codes_of(tensor).reshape(-1, 256), d.ravel(), sc.reshape(-1, per_block), dmin.ravel(), mn.reshape(-1, per_block)
    )
    kind = gguf.GGMLQuantizationType[name]
    decoded = gguf.quants.dequantize(blocks.reshape(6, -1), kind)
    assert np.array_equal(decoded.reshape(w.shape), tensor.dequantize())
    assert len(blocks) * 8 / w.size == tensor.bits_per_weight
