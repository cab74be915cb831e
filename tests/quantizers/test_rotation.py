"""Hadamard rotation: the matrix worked out by hand, the same bytes on every path, and the error it spreads."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import _kernels, quantize_tensor
from arrowquant_nb.errors import CheckpointError, ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers import MatrixJob, quantize_compensated, quantize_matrices, quantize_transformed
from arrowquant_nb.quantizers.rotation import rotate, rotated_hessian, rotated_importance, signs, unrotate

few = settings(max_examples=25)
columns_of = st.sampled_from([16, 32, 48, 64, 80, 144, 256, 320, 1024])
seeds = st.integers(0, 2**63 - 1)


def sylvester(n):
    return np.array([[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)], float)


def matrix(columns, seed):
    """R, written out: blocks of D S / sqrt(n)."""
    n = columns & -columns
    return np.diag(signs(seed, columns)) @ np.kron(np.eye(columns // n), sylvester(n)) / np.sqrt(n)


def outliers(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_t(5, (rows, columns)) * np.exp(rng.normal(0, 0.3, (rows, 1)))
    w[:, rng.choice(columns, max(1, columns // 100), replace=False)] *= 8
    return w.astype(np.float32)


def relative(tensor):
    return np.sqrt(tensor.statistics.sum_ee / tensor.statistics.sum_ww)


def splitmix(seed, n):
    """Steele, Lea, Flood 2014, with Python's integers."""
    mask, found = 2**64 - 1, []
    for i in range(1, n + 1):
        x = (seed + i * 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        found.append(-1.0 if (x ^ (x >> 31)) >> 63 else 1.0)
    return found


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 - 1])
def test_signs_are_those_of_splitmix64(seed):
    assert signs(seed, 200).tolist() == splitmix(seed, 200)
    assert abs(signs(seed, 10000).sum()) < 400


def test_one_row_worked_out_by_hand():
    row = np.zeros((1, 16), np.float32)
    row[0, 3] = 4.0  # row 3 of S alternates + - - +
    rotate(row, 0)
    assert row.tolist() == [[signs(0, 16)[3] * s for s in (1.0, -1.0, -1.0, 1.0) * 4]]


@given(columns_of, seeds)
@few
def test_rows_are_multiplied_by_the_matrix(columns, seed):
    w = outliers(5, columns)
    values = w.copy()
    rotate(values, seed)
    assert values == pytest.approx(w.astype(np.float64) @ matrix(columns, seed), rel=1e-4, abs=1e-4)
    assert (values.astype(np.float64) ** 2).sum() == pytest.approx((w.astype(np.float64) ** 2).sum(), rel=1e-5)


@given(columns_of, seeds, st.sampled_from([np.float32, np.float64]))
@few
def test_rotating_back_gives_the_rows(columns, seed, dtype):
    w = outliers(5, columns).astype(dtype)
    values = w.copy()
    rotate(values, seed)
    unrotate(values, seed)
    assert np.abs(values - w).max() <= 1e-6 * np.abs(w).max()


@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (3, 48), (420, 1024), (5, 3072), (2, 1 << 17)])
@pytest.mark.parametrize("backward", [False, True])
def test_every_instruction_set_gives_the_same_bytes(rows, columns, backward):
    w = outliers(rows, columns)
    w[0, 0] = 1e-41  # a denormal
    length = columns & -columns
    factors = (signs(3, columns) / np.sqrt(length)).astype(np.float32)
    found = set()
    for isa, threads in itertools.product(_kernels.available_isas(), (1, 3)):
        values = w.copy()
        _kernels.rotate_rows(values, factors, length, backward, threads, isa)
        found.add(values.tobytes())
    assert len(found) == 1


@pytest.mark.skipif(not _kernels.COMPILED, reason="nothing is compiled")
@pytest.mark.parametrize(("columns", "length", "n_signs"), [(48, 32, 48), (48, 8, 48), (48, 24, 48), (48, 16, 47)])
def test_the_kernel_refuses_sizes_that_do_not_fit(columns, length, n_signs):
    with pytest.raises(ValueError, match="48"):
        _kernels.rotate_rows(
            np.zeros((2, columns), np.float32), np.ones(n_signs, np.float32), length, False, 1, "scalar"
        )


def test_hessian_and_importance_follow_the_basis():
    x = np.random.default_rng(0).standard_normal((200, 48))
    h, r = x.T @ x, matrix(48, 7)
    assert rotated_hessian(h, 7) == pytest.approx(r.T @ h @ r, rel=1e-10, abs=1e-8)
    v = np.random.default_rng(1).random(48).astype(np.float32)
    assert rotated_importance(v) == pytest.approx(np.diag(r.T @ np.diag(v) @ r), rel=1e-6)


@given(columns_of, st.sampled_from([2, 4, 8]), st.sampled_from(["rtn", "mse", "uls"]), seeds, st.booleans())
@few
def test_what_is_dequantized_is_the_grid_rotated_back(columns, bits, method, seed, gain):
    w = outliers(6, columns)
    tensor = quantize_tensor(w, bits, 32, method, rotation="hadamard", gain_correction=gain, seed=seed)
    values = w.copy()
    rotate(values, seed)
    grid = quantize_tensor(values, bits, 32, method, gain_correction=gain)
    assert tensor.packed.tobytes() == grid.packed.tobytes()
    assert tensor.scales.tobytes() == grid.scales.tobytes()
    assert tensor.rotation_seed == seed
    back = grid.dequantize().astype(np.float64) @ matrix(columns, seed).T
    assert tensor.dequantize() == pytest.approx(back, rel=1e-4, abs=1e-5 * float(np.abs(back).max()))
    q, x = tensor.dequantize().astype(np.float64), w.astype(np.float64)
    assert tensor.statistics.sum_ee == pytest.approx(((q - x) ** 2).sum(), rel=1e-3)
    assert tensor.statistics.w_absmax == np.abs(w).max()
    assert tensor.nbytes == quantize_tensor(w, bits, 32, method).nbytes


def test_inputs_that_are_all_the_same_have_a_hessian_in_the_rotated_basis():
    """Most of its diagonal is 0 but for rounding, which fell below 0 and was refused as no sum of squares."""
    hessian = np.full((384, 384), 0.37)
    assert all(rotated_hessian(hessian, seed).diagonal().min() >= 0 for seed in range(20))
    w = np.random.default_rng(0).standard_normal((8, 384)).astype(np.float32)
    job = MatrixJob(w, "w", w.shape, 4, 32, "uls", rotation="hadamard", seed=4)
    _, report = quantize_compensated(job, hessian)
    assert report.objective_gptq <= report.objective_direct


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_heavy_tails_cost_less_when_they_are_spread(bits):
    w = outliers(128, 1024)
    plain, rotated = (quantize_tensor(w, bits, 64, rotation=r) for r in ("none", "hadamard"))
    assert relative(rotated) < 0.9 * relative(plain)


def test_auto_takes_the_smaller_error():
    w = outliers(64, 256)
    auto = quantize_tensor(w, rotation="auto", seed=3)
    assert auto.rotation_seed == 3
    assert auto.packed.tobytes() == quantize_tensor(w, rotation="hadamard", seed=3).packed.tobytes()
    steps = np.random.default_rng(0).integers(0, 16, (64, 256)).astype(np.float32)  # exact on the grid as they are
    auto = quantize_tensor(steps, rotation="auto", gain_correction=False)
    assert auto.rotation_seed is None
    assert auto.packed.tobytes() == quantize_tensor(steps, gain_correction=False).packed.tobytes()


def test_auto_weighs_columns_in_their_own_basis():
    w = outliers(64, 256)
    v = np.full(256, 1e-6, np.float32)
    v[:4] = 1.0  # only four columns count: rotation would spread everyone's error over them
    w[:, :4] = np.random.default_rng(0).integers(0, 4, (64, 4))
    assert quantize_tensor(w, 2, 32, rotation="auto", importance=v).rotation_seed is None


@pytest.mark.parametrize("columns", [15, 100, 1])
def test_rows_without_blocks_are_left_or_refused(columns):
    w = outliers(4, columns)
    assert quantize_tensor(w, rotation="auto").rotation_seed is None
    with pytest.raises(ConfigurationError, match=rf"blk\.proj: rows of {columns} weights cannot be rotated"):
        MatrixJob(w, "blk.proj", w.shape, 4, 32, "uls", rotation="hadamard")


@pytest.mark.parametrize(("field", "value"), [("rotation", "dct"), ("seed", -1), ("seed", 2**63), ("seed", 1.5)])
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ConfigurationError, match=f"{field} "):
        quantize_tensor(outliers(4, 64), **({"rotation": "hadamard"} | {field: value}))


def test_a_grid_alone_refuses_what_it_would_ignore():
    job = MatrixJob(outliers(4, 64), "w", (4, 64), 4, 32, "uls", rotation="hadamard")
    with pytest.raises(ConfigurationError, match="w: rotation"):
        quantize_matrices([job])


def test_bytes_do_not_depend_on_threads_or_company():
    jobs = [
        MatrixJob(outliers(300, 512, k), f"w{k}", (300, 512), 4, 64, "uls", rotation=r, seed=k)
        for k, r in enumerate(["none", "hadamard", "auto", "none"])
    ]
    together, alone = quantize_transformed(jobs, 3), [quantize_transformed([job], 1)[0] for job in jobs]
    for a, b in zip(together, alone, strict=True):
        assert (a.packed.tobytes(), a.scales.tobytes()) == (b.packed.tobytes(), b.scales.tobytes())
        assert (a.statistics, a.rotation_seed) == (b.statistics, b.rotation_seed)


@pytest.mark.parametrize("kind", ["float64", "strided", "big-endian", "bfloat16", "read-only"])
def test_any_memory_layout_is_read_and_not_written(kind):
    w = outliers(7, 96).astype(ml_dtypes.bfloat16).astype(np.float32)
    match kind:
        case "float64":
            array = w.astype(np.float64)
        case "strided":
            array = np.repeat(w, 2, axis=1)[:, ::2]
        case "big-endian":
            array = w.astype(">f4")
        case "bfloat16":
            array = w.astype(ml_dtypes.bfloat16)
        case "read-only":
            array = w.copy()
            array.flags.writeable = False
    before = array.tobytes()
    one, other = (quantize_tensor(x, rotation="hadamard", seed=5) for x in (array, w))
    assert array.tobytes() == before
    assert one.packed.tobytes() == other.packed.tobytes()
    assert one.dtype == ("bfloat16" if kind == "bfloat16" else "float32")


def test_convolutions_out_and_other_dtypes():
    w = outliers(6, 144).reshape(6, 16, 3, 3)
    tensor = quantize_tensor(w, rotation="hadamard")
    assert tensor.dequantize().shape == w.shape
    again = quantize_tensor(w[::-1].copy(), rotation="hadamard", out=tensor)
    assert again.packed is tensor.packed
    assert again.dequantize("float16") == pytest.approx(again.dequantize(), rel=1e-3, abs=1e-3)
    assert "rotated" in repr(again)
    with pytest.raises(ShapeMismatchError, match="layout"):
        quantize_tensor(w, 8, rotation="hadamard", out=tensor)
    with pytest.raises(ShapeMismatchError, match="do not fit float16"):
        quantize_tensor(w * np.float32(1e7), rotation="hadamard", out=tensor)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_unusable_weights_are_named_where_they_stand(bad):
    w = outliers(5, 64)
    w[3, 9] = bad
    with pytest.raises(CheckpointError, match=r"1 of 320 weights .* at index \(3, 9\)"):
        quantize_tensor(w, rotation="auto")


def test_rows_of_zeros_stay_zero():
    tensor = quantize_tensor(np.zeros((3, 64), np.float32), rotation="hadamard")
    assert not tensor.dequantize().any()
    assert tensor.statistics.cosine == 1.0


@given(columns_of, seeds)
@few
def test_a_product_of_rotated_input_and_rotated_weight_is_the_product(columns, seed):
    x, w = outliers(4, columns, 1), outliers(6, columns, 2)
    expected = x.astype(np.float64) @ w.T.astype(np.float64)
    rotate(x, seed)
    rotate(w, seed)
    found = x.astype(np.float64) @ w.T.astype(np.float64)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(x) * np.linalg.norm(w)


@given(columns_of, st.integers(0, 9))
@few
def test_without_signs_the_rotation_is_its_own_inverse(columns, seed):
    length = columns & -columns
    w = outliers(3, columns, seed)
    values = w.copy()
    factors = np.full(columns, 1 / np.sqrt(length), np.float32)
    for _ in range(2):
        _kernels.rotate_rows(values, factors, length, False, 1)
    assert np.abs(values - w).max() <= 1e-5 * np.abs(w).max()
