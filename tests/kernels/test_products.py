"""Products with stored weights: floats to rounding, codes byte for byte on every instruction set and thread count."""

import numpy as np
import pytest

from arrowquant_nb import _kernels
from arrowquant_nb._kernels import Matrix, StoredMatrix
from arrowquant_nb.quantizers import quantize_array
from arrowquant_nb.quantizers.activation_grid import round_rows, round_to_grid

GRIDS = [
    (8, 64, "rtn", "float16"),
    (4, 32, "rtn", "float16"),
    (2, 64, "rtn", "float16"),
    (8, 128, "uls", "float16"),
    (4, 64, "uls", "float16"),
    (4, 48, "uls", "float16"),
    (4, 256, "uls", "float16"),
    (2, 16, "uls", "float16"),
    (2, 32, "r2q", "float16"),
    (2, 128, "r2q", "float16"),
    (4, 32, "uls", "k"),
    (2, 16, "uls", "k"),
]
SIZES = [(1, 16), (40, 256), (37, 200), (19, 1100), (33, 2064)]
TOKENS = (1, 2, 3, 5, 8, 17)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: "-".join(map(str, g)))


def random(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def stored(rows, columns, grid, wide=False):
    """A quantized matrix, its order form, and its values in float64."""
    bits, group, method, scale_format = grid
    scale = 1e9 if wide else 1.0  # beyond float16, so that scales are float32
    tensor = quantize_array(random(rows, columns, scale=scale), bits, group, method, scale_format=scale_format)
    form = StoredMatrix(tensor.packed, tensor.scales, tensor.zero_points, tensor.grid, bits, group, (rows, columns))
    return Matrix.of(form), tensor.dequantize().astype(np.float64)


def floats(x, form, bias, isa, threads=1):
    out = np.full((len(x), form.stored.shape[0]), np.nan, np.float32)
    _kernels.multiply_floats(x, form, bias, out, threads, isa)
    return out


def codes(x, form, bias, isa, span=None, grid=None, bits=8, threads=1):
    out = np.full((len(x), form.stored.shape[0]), np.nan, np.float32)
    _kernels.multiply_codes(x, form, bias, out, bits, max(span or x.shape[1], 16), grid, threads, isa)
    return out


@every_grid
def test_float_products_equal_the_dequantized_weight_in_float64(grid):
    for rows, columns in SIZES:
        form, weight = stored(rows, columns, grid)
        bias = random(rows, seed=2)
        for tokens in TOKENS:
            x = random(tokens, columns, seed=tokens)
            expected = x.astype(np.float64) @ weight.T + bias
            size = np.abs(x).astype(np.float64) @ np.abs(weight.T) + 1
            for isa in _kernels.product_isas():
                assert (np.abs(floats(x, form, bias, isa) - expected) < 3e-6 * size).all(), (rows, columns, tokens, isa)


@every_grid
def test_inputs_lose_no_more_than_the_last_bits_of_the_largest_of_their_group(grid):
    """Channels of a token differ by 2^40; a single one may be multiplied in integers with a unit per group."""
    rows, columns, group = 37, 1100, grid[1]
    form, weight = stored(rows, columns, grid)
    x = np.ldexp(random(2, columns, seed=1), np.random.default_rng(2).integers(-20, 20, columns)).astype(np.float32)
    x[:, 256:512] = 0
    starts = range(0, columns, group)
    largest = np.stack([np.abs(x[:, k : k + group]).max(1) for k in starts], 1).astype(np.float64)
    sizes = np.stack([np.ptp(weight[:, k : k + group], axis=1) * group for k in starts], 1)
    allowed = 2**-22 * (largest @ sizes.T) + 3e-6 * (np.abs(x).astype(np.float64) @ np.abs(weight.T))
    for isa in _kernels.product_isas():
        for tokens in (slice(0, 2), slice(0, 1), slice(1, 2)):
            given = x[tokens]
            error = np.abs(floats(given, form, None, isa) - given.astype(np.float64) @ weight.T)
            assert (error <= allowed[tokens]).all(), isa


@every_grid
@pytest.mark.parametrize("power", [-60, 40])
def test_inputs_times_a_power_of_two_give_outputs_times_it(grid, power):
    form, _ = stored(40, 200, grid)
    for tokens in (1, 3):
        x = random(tokens, 200, seed=1)
        for isa in _kernels.product_isas():
            assert np.array_equal(
                floats(np.ldexp(x, power), form, None, isa), np.ldexp(floats(x, form, None, isa), power)
            )


@every_grid
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_shows_in_the_outputs_of_its_token_only(grid, bad):
    form, _ = stored(40, 256, grid)
    x = random(6, 256)
    x[1, 77] = bad
    for isa in _kernels.product_isas():
        with np.errstate(invalid="ignore"):
            assert np.isfinite(floats(x, form, None, isa)).all(1).tolist() == [True, False, True, True, True, True]
            assert not np.isfinite(floats(x[1:2], form, None, isa)).any()


@every_grid
def test_products_of_codes_are_the_same_bytes_everywhere(grid):
    for rows, columns in SIZES:
        form, _ = stored(rows, columns, grid)
        bias = random(rows, seed=2)
        for tokens in TOKENS:
            x = random(tokens, columns, seed=tokens, scale=2.0)
            static = random(tokens, seed=3) ** 2 + np.float32(0.01), np.arange(tokens, dtype=np.float32) * 15
            for case in ({}, {"span": 64}, {"span": 16, "bits": 4}, {"grid": static}):
                first, *others = (codes(x, form, bias, isa, **case) for isa in _kernels.product_isas())
                assert np.isfinite(first).all()
                assert all(np.array_equal(first, other) for other in others), (rows, columns, tokens, case)


@every_grid
def test_products_of_codes_are_those_of_the_rounded_inputs(grid):
    form, weight = stored(37, 200, grid)
    x = random(6, 200, seed=1, scale=2.0)
    static = np.full(6, 0.03, np.float32), np.full(6, 100, np.float32)
    in_groups = np.concatenate([round_rows(x[:, k : k + 64], 8) for k in range(0, 200, 64)], 1)
    cases = [
        ({}, round_rows(x, 8)),
        ({"bits": 4}, round_rows(x, 4)),
        ({"span": 64}, in_groups),
        ({"grid": static}, round_to_grid(x, 0.03, 100, 8)),
    ]
    for case, rounded in cases:
        expected = rounded.astype(np.float64) @ weight.T
        tolerance = 2e-5 * (np.abs(rounded).astype(np.float64) @ np.abs(weight.T) + 1)
        assert (np.abs(codes(x, form, None, None, **case) - expected) < tolerance).all(), case


def test_wide_scales_change_nothing():
    x = random(9, 1100, seed=1)
    for grid in GRIDS[:5] + GRIDS[-2:]:
        form, weight = stored(67, 1100, grid, wide=grid[3] != "k")
        for isa in _kernels.product_isas():
            one = floats(x, form, None, isa)
            np.testing.assert_allclose(one, x @ weight.T, rtol=1e-3, atol=1e-3 * np.abs(one).max())


@pytest.mark.parametrize(("rows", "tokens"), [(3900, 1), (515, 9), (35, 200)])  # enough that threads are woken for it
def test_threads_change_nothing(rows, tokens):
    x = random(tokens, 1100, seed=1)
    for grid in GRIDS[:5] + GRIDS[-2:]:
        form, _ = stored(rows, 1100, grid)
        for isa in _kernels.product_isas():
            of_one = floats(x, form, None, isa), codes(x, form, None, isa)
            for threads in (2, 3):
                assert np.array_equal(of_one[0], floats(x, form, None, isa, threads=threads))
                assert np.array_equal(of_one[1], codes(x, form, None, isa, threads=threads))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_no_number_spoils_its_own_token_only(bad):
    form, _ = stored(40, 256, GRIDS[0])
    x = random(3, 256)
    good = codes(x, form, None, None)
    x[1, 77] = bad
    for isa in _kernels.product_isas():
        got = codes(x, form, None, isa)
        assert np.isnan(got[1]).all()
        assert np.array_equal(got[[0, 2]], good[[0, 2]])
        if np.isnan(bad):
            given = np.ones(3, np.float32), np.full(3, 9, np.float32)
            assert np.isnan(codes(x, form, None, isa, grid=given)[1]).all()


def test_a_token_of_zeros_gives_the_bias():
    for grid in GRIDS:
        form, _ = stored(37, 200, grid)
        bias, x = random(37, seed=2), np.zeros((2, 200), np.float32)
        for isa in _kernels.product_isas():
            assert np.array_equal(codes(x, form, bias, isa), np.tile(bias, (2, 1)))
            assert np.array_equal(codes(x, form, bias, isa, span=64), np.tile(bias, (2, 1)))


both_paths = pytest.mark.parametrize("isa", dict.fromkeys((_kernels.product_isas()[0], _kernels.product_isas()[-1])))


@both_paths
@pytest.mark.parametrize(
    "wrong",
    [
        lambda good: {"packed": good.packed[:-1]},
        lambda good: {"packed": np.repeat(good.packed, 2, axis=1)[:, ::2]},
        lambda good: {"scales": good.scales[:, :-1].copy()},
        lambda good: {"zero_points": good.zero_points[:, :-1].copy()},
        lambda good: {"shape": (40, 128)},
        lambda good: {"shape": (0, 256)},
        lambda good: {"bit_width": 3},
        lambda good: {"group_size": 24},
        lambda good: {"grid": "k"},
        lambda good: {"grid": "levels"},
    ],
)
def test_matrices_whose_buffers_do_not_fit_are_refused(isa, wrong):
    form, _ = stored(40, 256, GRIDS[4])
    stored_matrix = form.stored._replace(**wrong(form.stored))
    with pytest.raises(ValueError, match=r"."):
        floats(random(3, 256), Matrix(stored_matrix, None) if isa == "numpy" else Matrix.of(stored_matrix), None, isa)


@both_paths
def test_inputs_and_outputs_that_do_not_fit_are_refused(isa):
    form, _ = stored(40, 256, GRIDS[4])
    x = random(3, 256)
    with pytest.raises(ValueError, match="256"):
        floats(random(3, 240), form, None, isa)
    with pytest.raises(ValueError, match="go with"):
        floats(x, form, random(39), isa)
    with pytest.raises(ValueError, match="go with"):
        codes(x[:0], form, None, isa)
    with pytest.raises(ValueError, match="2 rows of outputs"):
        _kernels.multiply_floats(x, form, None, np.empty((2, 40), np.float32), 1, isa)
    with pytest.raises(ValueError, match="7 bits"):
        codes(x, form, None, isa, bits=7)
    with pytest.raises(ValueError, match="multiple of 16"):
        codes(x, form, None, isa, span=40)
    for n in (2, 4):
        with pytest.raises(ValueError, match="one per token"):
            codes(x, form, None, isa, grid=(np.ones(n, np.float32), np.ones(n, np.float32)))


@pytest.mark.skipif(_kernels.compiled_product is None, reason="needs the compiled products")
def test_an_unknown_instruction_set_is_refused():
    form, _ = stored(40, 256, GRIDS[4])
    with pytest.raises(ValueError, match="instruction set"):
        floats(random(3, 256), form, None, "sse9")
