"""Timestep grouping: cut the steps of a trajectory into contiguous groups, uniformly or optimally.

Optimal is exact dynamic programming over a table of costs (optimal 1-D partition; Bellman 1961): whoever knows what
it costs that steps share parameters fills the table. Knows nothing of activations, arrays or timesteps themselves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

# Four to eight groups recover nearly all that one per step does (measured); a longer table only over-fits.
MAX_GROUPS: Final = 16
# A grouping is fine enough when it costs this much of one group per step, or less.
TOLERANCE: Final = 1.02


class Grouping:
    """A partition of steps.

    Attributes
    ----------
    groups : half-open ranges of step indices, in order, covering all steps.
    cost : sum of the groups' costs.
    static_cost : cost of one group for all steps.
    """

    def __init__(self, groups: list[tuple[int, int]], cost: float, static_cost: float) -> None:
        self.groups = groups
        self.cost = cost
        self.static_cost = static_cost

    @property
    def gain_db(self) -> float:
        """Cost of one group for all over that of this grouping, in dB; 0 where both are 0."""
        if self.cost <= 0.0:
            return math.inf if self.static_cost > 0.0 else 0.0
        return 10.0 * math.log10(self.static_cost / self.cost) if self.static_cost > 0.0 else 0.0


def uniform_groups(n_steps: int, n_groups: int) -> list[tuple[int, int]]:
    """Return groups of equal size: step i belongs to group floor(i * n_groups / n_steps); at most `n_steps` of them."""
    _check_counts(n_steps, n_groups)
    n = min(n_groups, n_steps)
    edges = [-(-g * n_steps // n) for g in range(n + 1)]
    return [(edges[g], edges[g + 1]) for g in range(n)]


def cost_table(n_steps: int, cost: Callable[[int, int], float]) -> list[list[float]]:
    """Return the table of `cost(i, j)`, what it costs that the steps [i, j) form a group, at [i][j - i - 1]."""
    return [[cost(i, j) for j in range(i + 1, n_steps + 1)] for i in range(n_steps)]


def range_costs(low: list[float], high: list[float], bit_width: int) -> list[list[float]]:
    """Return the rounding noise of sharing one asymmetric grid, at [i][j - i - 1].

    A cheap proxy: (j - i) (U - L)^2 / (12 n^2) with [L, U] the union of the steps' ranges and zero, n = 2^bits - 1.
    """
    if len(low) != len(high):
        raise ShapeMismatchError(f"{len(low)} lower and {len(high)} upper ends of ranges; there must be one per step")
    n = float((1 << bit_width) - 1)
    table: list[list[float]] = []
    for i in range(len(low)):
        bottom = 0.0
        top = 0.0
        row: list[float] = []
        for j in range(i, len(low)):
            bottom = min(bottom, low[j])
            top = max(top, high[j])
            scale = (top - bottom) / n
            row.append((j - i + 1) * scale * scale / 12.0)
        table.append(row)
    return table


def optimal_groups(cost: list[list[float]], n_groups: int) -> tuple[list[tuple[int, int]], float]:
    """Return the partition into exactly `n_groups` groups of least cost, and that cost.

    Parameters
    ----------
    cost : table of what each possible group costs, at [i][j - i - 1] for the steps [i, j); see `cost_table`.
    n_groups : 1 or more; at most one per step.

    Ties are broken towards the earliest cut, from the last group to the first. O(n_groups * n_steps^2).
    """
    _check(cost)
    _check_counts(len(cost), n_groups)
    program = _Program(cost)
    n = min(n_groups, len(cost))
    while program.n_groups < n:
        program.add_group()
    return program.groups(), program.total


def choose_groups(cost: list[list[float]], max_groups: int) -> Grouping:
    """Return the optimal partition with the fewest groups that costs at most 2 % more than one group per step.

    Never more than `max_groups`, 16, or the number of steps: then the partition of that size is returned.
    """
    _check(cost)
    _check_counts(len(cost), max_groups)
    n = len(cost)
    most = min(max_groups, MAX_GROUPS, n)
    enough = TOLERANCE * math.fsum([row[0] for row in cost])
    program = _Program(cost)
    while program.total > enough and program.n_groups < most:
        program.add_group()
    return Grouping(program.groups(), program.total, cost[0][n - 1])


class _Program:
    """The dynamic program: `best[j]` is the least cost of the first j steps in `n_groups` groups."""

    def __init__(self, cost: list[list[float]]) -> None:
        n = len(cost)
        self.cost = cost
        self.n_groups = 1
        self.best: list[float] = [math.inf] + [cost[0][j] for j in range(n)]
        self.cuts: list[list[int]] = [[0] * (n + 1)]

    @property
    def total(self) -> float:
        """Least cost of all steps."""
        return self.best[len(self.cost)]

    def add_group(self) -> None:
        """Allow one group more."""
        n = len(self.cost)
        best: list[float] = [math.inf] * (n + 1)
        cut: list[int] = [0] * (n + 1)
        for i in range(self.n_groups, n):
            before = self.best[i]
            row = self.cost[i]
            for j in range(i + 1, n + 1):
                value = before + row[j - i - 1]
                if value < best[j]:
                    best[j] = value
                    cut[j] = i
        self.n_groups += 1
        self.best = best
        self.cuts.append(cut)

    def groups(self) -> list[tuple[int, int]]:
        """Follow the cuts back from the last step."""
        end = len(self.cost)
        found: list[tuple[int, int]] = []
        for cut in reversed(self.cuts):
            found.append((cut[end], end))
            end = cut[end]
        found.reverse()
        return found


def _check_counts(n_steps: int, n_groups: int) -> None:
    if n_steps < 1 or n_groups < 1:
        raise ConfigurationError(f"{n_steps} steps cannot be cut into {n_groups} groups: both must be at least 1")


def _check(cost: list[list[float]]) -> None:
    n = len(cost)
    for i, row in enumerate(cost):
        if len(row) != n - i:
            raise ShapeMismatchError(
                f"row {i} of the cost table has {len(row)} entries; with {n} steps it needs {n - i}"
            )
        for value in row:
            if not (0.0 <= value < math.inf):
                raise ConfigurationError(f"row {i} of the cost table holds {value}; costs are finite and not negative")
