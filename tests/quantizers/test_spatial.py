"""Equalization and smoothing: hand-worked scales, invariants, exactness, and a search that is never worse than off."""

import copy
import itertools
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arrowquant_nb as aq
from arrowquant_nb import (
    CheckpointError,
    ConfigurationError,
    MetadataError,
    ShapeMismatchError,
    SpatialQuantizer,
    SpatialQuantMetadata,
)
from arrowquant_nb.quantizers import MatrixJob, quantize_matrices
from arrowquant_nb.quantizers.equalization import equalization_scales
from arrowquant_nb.quantizers.scaled_columns import storable_scales
from arrowquant_nb.quantizers.spatial import smoothed_bias
from arrowquant_nb.quantizers.transforms import quantize_compensated, quantize_transformed

few = settings(max_examples=40)


def layer_with_outliers(seed=0, columns=64, steps=3):
    """Inputs with a few loud channels, and a weight that makes up for them."""
    rng = np.random.default_rng(seed)
    loud = np.where(rng.random(columns) < 0.1, 30.0, 1.0).astype(np.float32)
    rows = rng.standard_normal((steps, 40, columns)).astype(np.float32) * loud
    weight = (rng.standard_normal((24, columns)) / loud).astype(np.float32)
    return weight, rows


def search(quantizer, weights, rows, groups=None):
    return quantizer.channel_equalization(weights, rows.min(1), rows.max(1), rows, groups)


def test_the_public_names_are_these():
    for name in ("SpatialQuantizer", "SpatialQuantMetadata"):
        assert name in aq.__all__
        assert getattr(aq, name).__name__ == name


def test_scales_worked_by_hand():
    """sqrt(a / w) = [4, 1, 1/4] has geometric mean 1 already; alpha 1 gives a, alpha 0 gives 1 / w."""
    a, w = np.float32([16, 1, 0.25]), np.float32([1, 1, 4])
    np.testing.assert_allclose(equalization_scales(a, w, 0.5), [4, 1, 0.25])
    mean = 4 ** (1 / 3)
    np.testing.assert_allclose(equalization_scales(a, w, 1.0), a / mean, rtol=1e-3)
    np.testing.assert_allclose(equalization_scales(a, w, 0.0), 4 ** (1 / 3) / w, rtol=1e-3)


def test_channels_without_input_or_weight_keep_the_scale_one():
    scales = equalization_scales(np.float32([0, 16, 1, 5]), np.float32([1, 1, 1, 0]), 0.5)
    np.testing.assert_allclose(scales, [1, 2, 0.5, 1])
    np.testing.assert_array_equal(equalization_scales(np.zeros(3), np.zeros(3), 0.3), 1)


@st.composite
def maxima(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 40))
    return np.exp(rng.normal(0, 1.5, n)).astype(np.float32), np.exp(rng.normal(-3, 1, n)).astype(np.float32)


@given(maxima(), st.floats(0, 1))
@few
def test_scales_have_geometric_mean_one_and_follow_their_channels(pair, alpha):
    a, w = pair
    scales = equalization_scales(a, w, alpha)
    assert np.log(scales.astype(np.float64)).mean() == pytest.approx(0, abs=1e-3)
    assert (scales == scales.astype(np.float16)).all()
    order = np.random.default_rng(1).permutation(len(a))
    np.testing.assert_array_equal(equalization_scales(a[order], w[order], alpha), scales[order])
    # The unit of inputs or weights is of no consequence.
    np.testing.assert_allclose(equalization_scales(8 * a, w / 4, alpha), scales, rtol=2e-3)


@given(maxima())
@few
def test_the_ends_of_alpha_even_out_one_side_fully(pair):
    a, w = pair
    inputs = a / equalization_scales(a, w, 1.0)
    columns = w * equalization_scales(a, w, 0.0)
    np.testing.assert_allclose(inputs, inputs[0], rtol=2e-3)
    np.testing.assert_allclose(columns, columns[0], rtol=2e-3)


def test_extreme_channels_stay_in_range():
    a = np.float32([1e-30, 1, 1e30])
    scales = equalization_scales(a, np.ones(3, np.float32), 1.0)
    assert scales.min() > 0
    assert scales.max() <= 1.001e4


@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 40),
    st.sampled_from([None, 4, 8]), st.sampled_from([2, 4, 8]),
)  # fmt: skip
@few
def test_row_order_of_the_weights_does_not_matter(seed, rows_of_layers, columns, activation_bits, bits):
    rng = np.random.default_rng(seed)
    rows = (rng.standard_t(3, (2, 12, columns)) * np.exp(rng.normal(0, 1, columns))).astype(np.float32)
    weights = {f"w{k}": rng.standard_t(4, (n, columns)).astype(np.float32) for k, n in enumerate(rows_of_layers)}
    shuffled = {name: rng.permutation(weight, axis=0) for name, weight in weights.items()}
    quantizer = SpatialQuantizer(bits, 32, activation_bit_width=activation_bits)
    one, other = (search(quantizer, some, rows) for some in (weights, shuffled))
    # Sums of errors in another order may only ever decide between exponents that are as good as each other.
    assert one.error == pytest.approx(other.error, rel=1e-5)
    assert one.error_without == pytest.approx(other.error_without, rel=1e-5)
    if one.alpha == other.alpha:
        np.testing.assert_array_equal(one.scales, other.scales)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("activation_bits", [4, 8])
def test_loud_channels_are_evened_out_with_a_gain(activation_bits, per_token):
    weight, rows = layer_with_outliers()
    quantizer = SpatialQuantizer(4, 32, activation_bit_width=activation_bits, per_token=per_token)
    found = search(quantizer, {"a": weight}, rows)
    assert found.alpha is not None
    assert found.gain_db > 3
    loud = np.abs(rows).max((0, 1)) > 20
    assert found.scales[loud].min() > 2 * found.scales[~loud].max()


@given(st.integers(0, 10_000), st.sampled_from([None, 4, 8]), st.sampled_from([2, 4, 8]))
@settings(max_examples=15)
def test_the_search_is_never_worse_than_off_by_an_independent_measure(seed, activation_bits, bits):
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(4, (8, 32)).astype(np.float32)
    rows = rng.standard_t(4, (2, 15, 32)).astype(np.float32)
    quantizer = SpatialQuantizer(bits, 32, activation_bit_width=activation_bits)
    found = search(quantizer, {"a": weight}, rows)

    def error(scales):
        decoded = quantizer.per_group_quantize("a", weight, scales).dequantize().astype(np.float64)
        x = (rows / scales).reshape(-1, 32).astype(np.float64)
        if activation_bits:
            n = 2**activation_bits - 1
            low, high = min(x.min(), 0), max(x.max(), 0)
            step = (high - low) / n
            zero = np.rint(-low / step)
            x = (np.clip(np.rint(x / step) + zero, 0, n) - zero) * step
        y = rows.reshape(-1, 32).astype(np.float64) @ weight.T
        return ((x * scales @ decoded.T - y) ** 2).sum() / (y**2).sum()

    off = np.ones(32, np.float32)
    assert found.error <= found.error_without
    assert error(found.scales) == pytest.approx(found.error, rel=1e-2)
    assert error(off) == pytest.approx(found.error_without, rel=1e-2)
    assert (found.alpha is None) == bool((found.scales == 1).all() and found.gain_db == 0)


def test_off_wins_where_nothing_can_be_gained():
    weight, rows = np.zeros((4, 32), np.float32), np.ones((1, 5, 32), np.float32)
    found = search(SpatialQuantizer(4, 32), {"a": weight}, rows)
    assert found.alpha is None
    assert (found.scales == 1).all()
    assert found.gain_db == 0.0


def test_layers_with_one_input_share_scales_from_the_larger_columns():
    weight, rows = layer_with_outliers()
    quantizer = SpatialQuantizer(8, 32, activation_bit_width=8)
    shared = search(quantizer, {"q": weight, "k": 3 * weight[:8], "v": weight[:5]}, rows)
    w_absmax = np.abs(np.concatenate([weight, 3 * weight[:8]])).max(0)
    expected = equalization_scales(np.abs(rows).max((0, 1)), w_absmax, shared.alpha)
    np.testing.assert_array_equal(shared.scales, expected)


def test_the_largest_input_over_all_steps_counts():
    weight, rows = layer_with_outliers()
    rows[2, :, 5] *= 50  # loud at one step only
    found = search(SpatialQuantizer(8, 32, activation_bit_width=8), {"a": weight}, rows)
    expected = equalization_scales(np.abs(rows).max((0, 1)), np.abs(weight).max(0), found.alpha)
    np.testing.assert_array_equal(found.scales, expected)


def test_time_groups_of_the_grid_enter_the_search():
    weight, rows = layer_with_outliers(steps=2)
    rows[1] *= 100
    quantizer = SpatialQuantizer(8, 32, activation_bit_width=4)
    together = search(quantizer, {"a": weight}, rows)
    apart = search(quantizer, {"a": weight}, rows, [(0, 1), (1, 2)])
    assert apart.error_without < together.error_without


def test_stored_scales_are_undone_at_dequantize_and_counted():
    weight, rows = layer_with_outliers()
    scales = search(SpatialQuantizer(4, 32, activation_bit_width=8), {"a": weight}, rows).scales
    quantizer = SpatialQuantizer(4, 32, "rtn")
    tensor = quantizer.per_group_quantize("a", weight, scales)
    plain = quantizer.per_group_quantize("a", weight * scales)
    np.testing.assert_array_equal(tensor.packed, plain.packed)
    np.testing.assert_array_equal(tensor.dequantize(), plain.dequantize() / scales)
    assert tensor.equalization.dtype == np.float16
    assert tensor.nbytes == plain.nbytes + 2 * weight.shape[1]
    error = tensor.dequantize().astype(np.float64) - weight
    assert tensor.statistics.sqnr_db == pytest.approx(
        10 * math.log10((weight.astype(float) ** 2).sum() / (error**2).sum())
    )
    assert tensor.statistics.w_absmax == np.abs(weight).max()


@pytest.mark.parametrize("with_hessian", [False, True])
def test_scales_go_with_rotation_and_low_rank(with_hessian):
    """Equalized first, then branched and rotated; the last is undone first, and errors are those of the weights."""
    weight, rows = layer_with_outliers()
    scales = search(SpatialQuantizer(4, 32, activation_bit_width=8), {"a": weight}, rows).scales
    asked = {"rotation": "hadamard", "seed": 3, "low_rank": 2}
    job = MatrixJob(weight, "a", weight.shape, 4, 32, "rtn", equalization=storable_scales(scales), **asked)
    multiplied = MatrixJob(weight * scales, "a", weight.shape, 4, 32, "rtn", **asked)
    if with_hessian:
        x = rows.reshape(-1, weight.shape[1]).astype(np.float64)
        tensor, report = quantize_compensated(job, x.T @ x)
        inner, inner_report = quantize_compensated(multiplied, (x / scales).T @ (x / scales))
        assert report.objective_gptq == pytest.approx(inner_report.objective_gptq, rel=1e-6)
    else:
        (tensor,), (inner,) = quantize_transformed([job]), quantize_transformed([multiplied])
    assert tensor.rotation_seed == 3
    assert tensor.nbytes == inner.nbytes + 2 * 64
    np.testing.assert_allclose(tensor.dequantize(), inner.dequantize() / scales, rtol=1e-6)
    error = tensor.dequantize().astype(np.float64) - weight
    assert tensor.statistics.sum_ee == pytest.approx((error**2).sum(), rel=1e-9)


def test_importance_means_the_error_of_the_weights_themselves():
    """It goes along with the scales: what is minimized is the error after they are divided out."""
    weight, _ = layer_with_outliers()
    rng = np.random.default_rng(4)
    importance = np.exp(rng.normal(0, 2, 64)).astype(np.float32)
    scales = np.exp2(rng.integers(-2, 3, 64)).astype(np.float32)

    def codes(matrix, v, equalization=None):
        job = MatrixJob(matrix, "a", matrix.shape, 4, 32, "uls", False, v, equalization=equalization)
        return quantize_matrices([job])[0].packed

    np.testing.assert_array_equal(codes(weight, importance, scales), codes(weight * scales, importance / scales**2))


def test_dequantize_into_a_buffer_and_to_other_dtypes():
    weight, _ = layer_with_outliers()
    tensor = SpatialQuantizer(8, 32).per_group_quantize("a", weight, np.full(64, 0.3, np.float32))
    assert tensor.equalization.dtype == np.float32  # 0.3 is no float16
    out = np.empty(weight.shape, np.float16)
    assert tensor.dequantize("float16", out=out) is out
    np.testing.assert_array_equal(out, tensor.dequantize().astype(np.float16))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_dtype_of_the_source_is_kept(dtype):
    import ml_dtypes

    weight = np.random.default_rng(0).standard_normal((4, 32)).astype(getattr(ml_dtypes, dtype, dtype))
    tensor = SpatialQuantizer(8, 32).per_group_quantize("a", weight, np.full(32, 2, np.float32))
    assert tensor.dtype == dtype
    assert tensor.statistics.sqnr_db > 30


@given(st.integers(0, 10_000))
@few
def test_powers_of_two_common_to_all_columns_change_nothing(seed):
    weight = np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32)
    quantizer = SpatialQuantizer(4, 32)
    tensor = quantizer.per_group_quantize("a", weight, np.full(64, 4, np.float32))
    np.testing.assert_array_equal(tensor.dequantize(), quantizer.per_group_quantize("a", weight).dequantize())


def test_threads_do_not_matter():
    weight, rows = layer_with_outliers(columns=256)
    one, two = (
        search(SpatialQuantizer(4, 64, activation_bit_width=8, n_threads=n), {"a": weight}, rows) for n in (1, 2)
    )
    np.testing.assert_array_equal(one.scales, two.scales)
    assert one.error == two.error


def test_convolutions_and_vectors_are_read_as_matrices():
    rng = np.random.default_rng(2)
    kernel = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    scales = np.exp2(rng.integers(-2, 3, 36)).astype(np.float32)
    tensor = SpatialQuantizer(8, 32).per_group_quantize("conv", kernel, scales)
    assert tensor.dequantize().shape == kernel.shape
    assert SpatialQuantizer(8, 32).per_group_quantize("v", kernel[0, 0].ravel()).shape == (9,)


def test_the_means_worked_out_by_hand():
    rows = np.float32([[[1, 4], [3, 0]], [[10, -2], [30, -2]]])
    np.testing.assert_array_equal(SpatialQuantizer().activation_smoothing(rows, [(0, 1), (1, 2)]), [[2, 2], [20, -2]])
    np.testing.assert_array_equal(SpatialQuantizer().activation_smoothing(rows, [(0, 2)]), [[11, 0]])


@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 24),
    st.floats(0, 1000), st.booleans(),
)  # fmt: skip
@few
def test_smoothing_is_exact_per_time_group(seed, steps_of_groups, columns, offset, with_bias):
    """x W^T + b = (x - mean) W^T + (b + mean W^T), for any inputs, groups and means, to float32's rounding."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0], np.cumsum(steps_of_groups)])
    groups = list(itertools.pairwise(edges.tolist()))
    weight = (rng.standard_t(3, (5, columns)) * np.exp(rng.normal(0, 1, columns))).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32) if with_bias else None
    rows = (rng.standard_normal((edges[-1], 9, columns)) + offset * rng.standard_normal(columns)).astype(np.float32)
    means = SpatialQuantizer().activation_smoothing(rows, groups)
    assert means.shape == (len(groups), columns)
    exact, w = rows.astype(np.float64), weight.astype(np.float64)
    for (i, j), mean, shifted in zip(groups, means, smoothed_bias(weight, bias, means), strict=True):
        terms = np.abs(exact[i:j]) @ np.abs(w).T + np.abs(mean) @ np.abs(w).T + 1
        np.testing.assert_allclose(exact[i:j].mean((0, 1)), mean, rtol=1e-5, atol=1e-5 * (1 + offset))
        smoothed = (exact[i:j] - mean) @ w.T + shifted
        assert (np.abs(smoothed - exact[i:j] @ w.T - (0 if bias is None else bias)) <= 1e-6 * terms).all()


def test_sizes_that_do_not_fit_are_refused_by_name():
    weight, rows = layer_with_outliers()
    quantizer = SpatialQuantizer()
    for weights, some in (({"a": weight[:, :10]}, rows), ({}, rows), ({"a": weight}, rows[0])):
        with pytest.raises(ShapeMismatchError):
            quantizer.channel_equalization(weights, rows.min(1), rows.max(1), some)
    with pytest.raises(ShapeMismatchError, match="a: "):
        quantizer.channel_equalization({"a": weight}, rows.min(1)[:, :9], rows.max(1)[:, :9], rows)


def test_inputs_that_are_no_numbers_are_refused_by_name():
    weight, rows = layer_with_outliers()
    bad = rows.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(ConfigurationError, match=r"a\.weight.*NaN"):
        SpatialQuantizer().channel_equalization({"a.weight": weight}, rows.min(1), rows.max(1), bad)
    with pytest.raises(ConfigurationError, match="4, 8"):
        SpatialQuantizer(activation_bit_width=5)


@pytest.mark.parametrize(("scales", "error"), [
    (np.ones(9, np.float32), ShapeMismatchError),
    (np.zeros(10, np.float32), ConfigurationError),
    (np.full(10, np.inf, np.float32), ConfigurationError),
    (-np.ones(10, np.float16), ConfigurationError),
    (np.ones(10), TypeError),
    ([1.0] * 10, TypeError),
])  # fmt: skip
def test_scales_that_cannot_be_divided_by_are_refused_by_name(scales, error):
    with pytest.raises(error, match=r"a\.weight"):
        MatrixJob(np.ones((2, 10), np.float32), "a.weight", (2, 10), 4, 32, "rtn", equalization=scales)


def test_weights_that_are_no_numbers_are_named_as_without_scales():
    weight = np.ones((2, 32), np.float32)
    weight[1, 3] = np.nan
    job = MatrixJob(weight, "a.weight", weight.shape, 4, 32, "rtn", equalization=np.full(32, 2, np.float32))
    with pytest.raises(CheckpointError, match=r"a\.weight: 1 of 64 .*\(1, 3\)"):
        quantize_matrices([job])


def test_scales_are_stored_as_float16_only_where_that_is_exact():
    assert storable_scales(np.float32([1, 0.5, 3])).dtype == np.float16
    assert storable_scales(np.float32([1, 0.3])).dtype == np.float32
    assert storable_scales(np.float32([1, 1e6])).dtype == np.float32


METADATA = SpatialQuantMetadata(
    True, True, True, {"a": (1.0, 2.0), "b": (0.5, 0.25)}, {"b": ((0.0, 1.5),)}, {"a": 0.35}, ("a",)
)


def test_metadata_survive_json_pickle_and_copy():
    assert SpatialQuantMetadata.from_dict(json.loads(json.dumps(METADATA.to_dict()))) == METADATA
    assert pickle.loads(pickle.dumps(METADATA)) == METADATA
    assert copy.deepcopy(METADATA) == METADATA
    off = SpatialQuantMetadata(False)
    assert SpatialQuantMetadata.from_dict(off.to_dict()) == off


def test_a_layer_takes_its_own_part():
    assert METADATA.of_layer("a") == SpatialQuantMetadata(True, True, False, {"a": (1.0, 2.0)}, {}, {"a": 0.35}, ("a",))
    assert METADATA.of_layer("c") == SpatialQuantMetadata(True)


@pytest.mark.parametrize("values", [
    (True, True), (True, False, False, {"a": (1.0,)}), (True, False, True), (False, True, False, {"a": (1.0,)}),
    (True, True, False, {"a": (1.0,)}, {}, {}, ("b",)),
])  # fmt: skip
def test_metadata_that_contradict_themselves_are_refused(values):
    with pytest.raises(MetadataError):
        SpatialQuantMetadata(*values)
