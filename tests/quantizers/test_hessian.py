"""The Hessian: what it is, what is refused, and the factor that spreads rounding errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.hessian import LastFactor, checked_hessian, factorise, mean_outer

few = settings(max_examples=25)


def hessian_of(columns, rank, seed=0):
    x = np.random.default_rng(seed).standard_normal((rank, columns))
    return x.T @ x / rank


def damped(h, share):
    return h + np.eye(len(h)) * share * h.diagonal().mean()


def test_the_mean_of_two_blocks_worked_out_by_hand():
    blocks = [np.array([[1.0, 2.0]], np.float32), np.array([[3.0, 0.0], [0.0, 1.0]], np.float32)]
    assert np.array_equal(mean_outer(blocks, 2), np.array([[10.0, 2.0], [2.0, 5.0]]) / 3)
    assert not mean_outer([], 2).any()


def test_the_mean_keeps_what_float32_would_lose():
    blocks = [np.full((1, 1), 4096.0, np.float32)] + [np.full((1, 1), 1.0, np.float32)] * 7
    assert mean_outer(blocks, 1)[0, 0] == (4096.0**2 + 7) / 8


def test_rows_of_another_width_are_refused():
    with pytest.raises(ShapeMismatchError, match="3 input columns"):
        mean_outer([np.ones((4, 2))], 3)


def test_a_factor_worked_out_by_hand():
    h = np.array([[4.0, 2.0], [2.0, 3.0]])
    share = 0.01
    a, b, c = 4 + share * 3.5, 2.0, 3 + share * 3.5
    inverse = np.array([[c, -b], [-b, a]]) / (a * c - b * b)
    upper = factorise(h).upper
    assert upper[0, 0] == pytest.approx(np.sqrt(inverse[0, 0]))
    assert upper[0, 1] == pytest.approx(inverse[0, 1] / np.sqrt(inverse[0, 0]))
    assert upper[1, 1] == pytest.approx(np.sqrt(1 / c))
    assert upper[1, 0] == 0


@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 9))
@few
def test_the_factor_inverts_the_damped_hessian(columns, rank, seed):
    h = hessian_of(columns, rank, seed)
    factor = factorise(h)
    assert np.array_equal(factor.upper, np.triu(factor.upper))
    assert factor.upper.diagonal().min() > 0
    assert np.abs(factor.upper @ damped(h, factor.damping) @ factor.upper.T - np.eye(columns)).max() < 1e-9
    assert (factor.damping, factor.retries, factor.dead) == (0.01, 0, 0)


@given(st.integers(1, 200), st.integers(-30, 30))
@few
def test_a_power_of_two_changes_only_the_scale_of_the_factor(columns, exponent):
    h = hessian_of(columns, columns)
    one, other = factorise(h), factorise(h * 4.0**exponent)
    assert np.array_equal(one.upper, other.upper * 2.0**exponent)
    assert np.array_equal(one.importance, other.importance)


def test_equal_diagonals_give_an_importance_of_exactly_one():
    for scale in (1.0, 0.37, 1e-9, 3e12):
        assert (factorise(np.eye(97) * scale).importance == 1).all()


def test_damping_is_raised_until_the_matrix_is_definite():
    h = np.eye(80)
    h[0, 1] = h[1, 0] = 1.5  # eigenvalue -0.5
    factor = factorise(h)
    assert (factor.damping, factor.retries) == (1.0, 2)
    h[0, 1] = h[1, 0] = 1000.0
    assert factorise(h) is None


def test_dead_columns_take_no_part():
    h = hessian_of(100, 300)
    h[[3, 70]] = 0
    h[:, [3, 70]] = 0
    factor = factorise(h)
    assert factor.dead == 2
    for column in (3, 70):
        others = np.delete(np.arange(100), column)
        assert not factor.upper[column, others].any()
        assert not factor.upper[others, column].any()
        assert factor.importance[column] == pytest.approx(1.0)
    assert factorise(np.zeros((5, 5))) is None


def test_float32_is_taken_and_small_asymmetry_is_averaged():
    h = hessian_of(20, 50).astype(np.float32)
    assert checked_hessian(h, 20, "w").dtype == np.float64
    exact = hessian_of(20, 50)
    exact = (exact + exact.T) / 2
    assert checked_hessian(exact, 20, "w") is exact
    exact[0, 1] += 1e-6
    mended = checked_hessian(exact, 20, "w")
    assert np.array_equal(mended, mended.T)
    assert exact[0, 1] != exact[1, 0]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda h: h[:3], ShapeMismatchError, r"layer7: the Hessian has shape \(3, 4\), the layer 4 input columns"),
        (lambda h: h.astype(np.int64), TypeError, "layer7: a Hessian must be a float64 or float32 array, got int64"),
        (lambda h: h.tolist(), TypeError, "layer7: .* got list"),
        (lambda h: np.where(np.eye(4), np.nan, h), ConfigurationError, "layer7: the Hessian holds nan"),
        (lambda h: np.where(np.eye(4), np.inf, h), ConfigurationError, "layer7: the Hessian holds inf"),
        (lambda h: h * 1e200, ConfigurationError, "far too large"),
        (np.tril, ConfigurationError, "layer7: the Hessian is not symmetric"),
        (lambda h: h - np.diag([0, 0, 9.0, 0]), ConfigurationError, "layer7: diagonal element 2"),
    ],
)
def test_what_is_no_hessian_is_refused(spoil, error, message):
    with pytest.raises(error, match=message):
        checked_hessian(spoil(hessian_of(4, 9)), 4, "layer7")


def test_the_last_factor_is_remembered_for_one_array_in_one_basis():
    h, known = hessian_of(12, 40), LastFactor()
    first = known(h, h, (None, b""))
    np.testing.assert_array_equal(first.upper, factorise(h).upper)
    assert known(h.copy(), h, (None, b"")) is first
    other = known(4 * h, h, (3, b""))  # another basis of the same array
    np.testing.assert_array_equal(other.upper, factorise(4 * h).upper)
    assert known(h, h, (None, b"")) is not first  # one is held
    equal = h.copy()
    assert known(equal, equal, (None, b"")) is not known(h, h, (None, b""))
    assert known(np.zeros((3, 3)), equal, "nothing seen") is None
