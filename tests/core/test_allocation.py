"""Bit allocation: hand-worked budgets, exhaustive search, and what must hold for every budget."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_nb import ConfigurationError
from arrowquant_nb.core.allocation import MAX_DP_LAYERS, BitAllocator, Option

OPTION = st.builds(
    lambda bits, nbytes, error: Option(bits, 64, nbytes, error),
    st.sampled_from([2, 4, 8, 16]), st.integers(0, 60), st.floats(0, 10),
)  # fmt: skip
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=4)


def ladder(n_weights=1024, error=1.0):
    """A layer as quantizers make it: each two bits cost a twelfth of the error."""
    options = [Option(b, 64, n_weights * (b * 64 + 32) // 512, error * 12.0 ** (-b / 2)) for b in (2, 4, 8)]
    return [*options, Option(16, 0, 2 * n_weights, 0.0)]


def bits(allocation, layers):
    return [options[n].bit_width for n, options in zip(allocation.choices, layers, strict=True)]


def exhaustive(layers, budget):
    sums = (
        (sum(o.nbytes for o in chosen), math.fsum(o.error for o in chosen)) for chosen in itertools.product(*layers)
    )
    return min(error for nbytes, error in sums if nbytes <= budget)


def test_the_error_is_bought_where_a_byte_saves_most():
    layers = [
        [Option(2, 64, 100, 9.0), Option(4, 64, 200, 1.0), Option(8, 64, 400, 0.5)],
        [Option(2, 64, 100, 4.0), Option(4, 64, 200, 3.0), Option(8, 64, 400, 0.0)],
    ]
    allocator = BitAllocator(layers)
    assert bits(allocator.allocate(200), layers) == [2, 2]
    assert bits(allocator.allocate(399), layers) == [4, 2]
    assert bits(allocator.allocate(400), layers) == [4, 4]
    assert bits(allocator.allocate(600), layers) == [4, 8]
    assert bits(allocator.allocate(10**9), layers) == [8, 8]
    assert allocator.allocate(600).nbytes == 600
    assert allocator.allocate(600).error == 1.0


def test_what_the_hull_cannot_reach_dynamic_programming_finds():
    layers = [[Option(2, 64, 0, 10.0), Option(4, 64, 6, 6.0), Option(8, 64, 10, 0.0)]]
    found = BitAllocator(layers).allocate(9)
    assert found.method == "dynamic programming"
    assert found.error == 6.0


def test_an_unreachable_budget_states_the_smallest_reachable_size():
    with pytest.raises(ConfigurationError, match=r"smallest reachable size is 3,480 bytes \(0\.004 MB\)"):
        BitAllocator([[Option(2, 64, 1740, 1.0)], [Option(2, 64, 1740, 1.0), Option(4, 64, 3000, 0.1)]]).allocate(3479)


def test_a_layer_without_options_and_impossible_figures_are_refused():
    with pytest.raises(ConfigurationError, match="layer 1 has no options"):
        BitAllocator([[Option(2, 64, 1, 1.0)], []])
    for nbytes, error in ((-1, 0.0), (1, math.nan), (1, math.inf), (1, -0.1)):
        with pytest.raises(ConfigurationError, match="INT4 g64"):
            Option(4, 64, nbytes, error)


def test_equal_layers_get_equal_bits_when_the_budget_allows_just_that():
    layers = [ladder() for _ in range(12)]
    for position, option in enumerate(layers[0]):
        assert BitAllocator(layers).allocate(12 * option.nbytes).choices == [position] * 12


@given(LAYERS, st.integers(0, 250))
def test_no_choice_within_the_budget_is_better_than_the_one_found(layers, budget):
    allocator = BitAllocator(layers)
    if budget < allocator.smallest_nbytes:
        assert allocator.smallest_nbytes == sum(min(o.nbytes for o in options) for options in layers)
        with pytest.raises(ConfigurationError, match=f"{allocator.smallest_nbytes:,} bytes"):
            allocator.allocate(budget)
        return
    found = allocator.allocate(budget)
    chosen = [options[n] for n, options in zip(found.choices, layers, strict=True)]
    assert found.nbytes == sum(o.nbytes for o in chosen) <= budget
    assert found.error == pytest.approx(math.fsum(o.error for o in chosen))
    assert found.error == pytest.approx(exhaustive(layers, budget), abs=1e-9)


@given(LAYERS, st.randoms(use_true_random=False), st.integers(0, 250))
def test_permuting_the_layers_changes_neither_the_bytes_nor_the_error(layers, rng, budget):
    allocator = BitAllocator(layers)
    budget = max(budget, allocator.smallest_nbytes)
    shuffled = rng.sample(layers, len(layers))
    a, b = allocator.allocate(budget), BitAllocator(shuffled).allocate(budget)
    assert a.nbytes == b.nbytes
    assert a.error == pytest.approx(b.error)
    assert sorted(
        (options[n].nbytes, options[n].error) for n, options in zip(a.choices, layers, strict=True)
    ) == sorted((options[n].nbytes, options[n].error) for n, options in zip(b.choices, shuffled, strict=True))


def uneven(n, seed):
    rng = random.Random(seed)
    return [ladder(rng.randrange(1000, 90000), 10 ** rng.uniform(-5, -2)) for _ in range(n)]


@pytest.mark.parametrize("n", [3, 40, MAX_DP_LAYERS + 1])
def test_a_larger_budget_never_gives_a_larger_error_nor_exceeds_itself(n):
    layers = uneven(n, n)
    allocator = BitAllocator(layers)
    largest = sum(options[-1].nbytes for options in layers)
    before = math.inf
    for k in range(60):
        budget = allocator.smallest_nbytes + (largest - allocator.smallest_nbytes) * k // 59
        found = allocator.allocate(budget)
        assert found.nbytes <= budget
        assert found.error <= before * (1 + 1e-9)
        before = found.error
    assert before == 0


@given(st.integers(0, 1000), st.floats(0, 1))
def test_large_steps_lose_little_against_exhaustive_search_and_nothing_against_greedy(seed, share):
    layers = uneven(4, seed)
    allocator = BitAllocator(layers)
    span = sum(options[-1].nbytes for options in layers) - allocator.smallest_nbytes
    budget = allocator.smallest_nbytes + int(share * span)
    found = allocator.allocate(budget)
    greedy = allocator._finish(allocator._greedy(budget), "greedy")
    assert found.error <= greedy.error
    # Rounding a layer to whole steps of 1/1024 of the span is worth at most half a step, here and there.
    less = budget - 4 * (span // 1024 + 1)
    if less >= allocator.smallest_nbytes:
        assert found.error <= exhaustive(layers, less) + 1e-12
