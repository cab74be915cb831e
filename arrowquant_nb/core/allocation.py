"""Bits per layer under a size budget: the least total error whose stored bytes fit.

Minimises the sum of the layers' errors over one option per layer (Lagrangian relaxation on the convex hull, Shoham and
Gersho 1988, refined by dynamic programming). Errors are taken as additive over layers. Knows options only: no tensors,
no files. The candidates do not depend on the budget, so a changed budget costs a look-up and a larger one never a
larger error.
"""

from __future__ import annotations

import math
from typing import Final

from arrowquant_nb.errors import ConfigurationError

# The dynamic program counts bytes in this many steps between the smallest and the largest model.
BUDGET_STEPS: Final = 1024
# With more layers rounding up to whole steps costs more than the greedy walk loses.
MAX_DP_LAYERS: Final = 512


class Option:
    """One way to store a layer.

    Attributes
    ----------
    bit_width : 2, 4, 8, or 16 = kept.
    group_size : weights that share a scale; 0 when kept.
    nbytes : every stored byte of the layer.
    error : what it costs, in any unit that adds up over layers; finite, not negative.
    """

    def __init__(self, bit_width: int, group_size: int, nbytes: int, error: float) -> None:
        if nbytes < 0 or not (0.0 <= error < math.inf):
            raise ConfigurationError(
                f"an option of INT{bit_width} g{group_size} has {nbytes} bytes and error {error}: bytes must not be "
                "negative, and the error finite and not negative"
            )
        self.bit_width = bit_width
        self.group_size = group_size
        self.nbytes = nbytes
        self.error = error


class Allocation:
    """One option per layer.

    Attributes
    ----------
    choices : index into each layer's options, in the order they were given.
    nbytes : stored bytes of all layers; never above the budget.
    error : sum of the chosen errors.
    method : "greedy" or "dynamic programming", whichever found it.
    """

    def __init__(self, choices: list[int], nbytes: int, error: float, method: str) -> None:
        self.choices = choices
        self.nbytes = nbytes
        self.error = error
        self.method = method


class BitAllocator:
    """Solves one set of layers for any number of budgets.

    Parameters
    ----------
    layers : the options of each layer, in any order; at least one each.

    Raises
    ------
    ConfigurationError
        A layer without options.
    """

    def __init__(self, layers: list[list[Option]]) -> None:
        for number, options in enumerate(layers):
            if not options:
                raise ConfigurationError(f"layer {number} has no options to choose from; give it at least one")
        self.layers = layers
        useful = [_undominated(options) for options in layers]
        # Equal layers stand together whatever the order they came in, so permuting layers changes nothing.
        self.order = sorted(range(len(layers)), key=lambda n: _content(layers[n], useful[n]))
        self.useful = [useful[n] for n in self.order]
        self.smallest_nbytes = sum([self._option(k, 0).nbytes for k in range(len(self.order))])
        self.steps = self._greedy_steps()
        self.table = _Table(self._deltas()) if len(layers) <= MAX_DP_LAYERS else None

    def allocate(self, budget: int) -> Allocation:
        """Return the least error found whose bytes are at most `budget`.

        Raises
        ------
        ConfigurationError
            Even the smallest options need more; the message carries the smallest reachable size.
        """
        if budget < self.smallest_nbytes:
            raise ConfigurationError(
                f"target_model_size_mb: the tensors cannot be stored in {budget:,} bytes; the smallest reachable size "
                f"is {self.smallest_nbytes:,} bytes ({math.ceil(self.smallest_nbytes / 1000) / 1000:.3f} MB)"
            )
        greedy = self._finish(self._greedy(budget), "greedy")
        if self.table is None:
            return greedy
        exact = self._finish(self.table.best(budget - self.smallest_nbytes), "dynamic programming")
        return exact if exact.error < greedy.error else greedy

    def _option(self, k: int, position: int) -> Option:
        """Return the option at a position of the undominated ones of the k-th layer in canonical order."""
        return self.layers[self.order[k]][self.useful[k][position]]

    def _greedy_steps(self) -> list[tuple[float, int, int, int]]:
        """Return the steps up every layer's convex hull, most error saved per byte first: (slope, layer, from, to)."""
        steps: list[tuple[float, int, int, int]] = []
        for k in range(len(self.order)):
            hull = _lower_hull([self._option(k, p) for p in range(len(self.useful[k]))])
            for at in range(len(hull) - 1):
                a, b = self._option(k, hull[at]), self._option(k, hull[at + 1])
                steps.append((_slope(a, b), k, hull[at], hull[at + 1]))
        steps.sort()
        return steps

    def _greedy(self, budget: int) -> list[int]:
        """Take steps while the next one fits. Skipping one would let a larger budget end with a larger error."""
        positions = [0] * len(self.order)
        left = budget - self.smallest_nbytes
        for _, k, position, following in self.steps:
            extra = self._option(k, following).nbytes - self._option(k, position).nbytes
            if extra > left:
                break
            left -= extra
            positions[k] = following
        return positions

    def _deltas(self) -> list[list[tuple[int, float]]]:
        """Bytes above the smallest option, and error, of every undominated option."""
        deltas: list[list[tuple[int, float]]] = []
        for k in range(len(self.order)):
            least = self._option(k, 0).nbytes
            options = [self._option(k, p) for p in range(len(self.useful[k]))]
            deltas.append([(o.nbytes - least, o.error) for o in options])
        return deltas

    def _finish(self, positions: list[int], method: str) -> Allocation:
        choices = [0] * len(self.layers)
        for k, position in enumerate(positions):
            choices[self.order[k]] = self.useful[k][position]
        chosen = [self.layers[n][choice] for n, choice in enumerate(choices)]
        return Allocation(choices, sum([o.nbytes for o in chosen]), math.fsum([o.error for o in chosen]), method)


class _Table:
    """Dynamic program over extra bytes, counted in units and rounded to the nearest per layer.

    Every state keeps its true bytes, and the look-up asks those: rounding never exceeds a budget, and mostly cancels
    out. The unit is the greatest common divisor of all steps where that suffices, and the solution then exact.
    """

    def __init__(self, layers: list[list[tuple[int, float]]]) -> None:
        span = sum([options[-1][0] for options in layers])
        common = 0
        for options in layers:
            for extra, _ in options:
                common = math.gcd(common, extra)
        self.unit = max(common, -(-span // BUDGET_STEPS), 1)
        self.layers = layers
        size = span // self.unit + len(layers) + 1
        self.nbytes: list[int] = [0] * size
        self.errors: list[float] = [0.0] * size
        self.choices: list[list[int]] = []
        for options in layers:
            self._add(options)

    def _add(self, options: list[tuple[int, float]]) -> None:
        size = len(self.errors)
        errors: list[float] = [math.inf] * size
        nbytes: list[int] = [0] * size
        choice: list[int] = [0] * size
        old_errors = self.errors
        old_nbytes = self.nbytes
        for position, (extra, error) in enumerate(options):
            units = self._units(extra)
            for j in range(units, size):
                value = old_errors[j - units] + error
                total = old_nbytes[j - units] + extra
                if value < errors[j] or (value == errors[j] and total < nbytes[j]):
                    errors[j] = value
                    nbytes[j] = total
                    choice[j] = position
        self.errors = errors
        self.nbytes = nbytes
        self.choices.append(choice)

    def _units(self, extra: int) -> int:
        return (2 * extra + self.unit) // (2 * self.unit)

    def best(self, extra: int) -> list[int]:
        """Return the position chosen for every layer in the best state of at most `extra` true bytes.

        The smallest options where rounding left no such state.
        """
        state = -1
        for j in range(len(self.errors)):
            if self.nbytes[j] <= extra and (state < 0 or self.errors[j] < self.errors[state]):
                state = j
        if state < 0:
            return [0] * len(self.layers)
        positions: list[int] = []
        for k in range(len(self.layers) - 1, -1, -1):
            position = self.choices[k][state]
            positions.append(position)
            state -= self._units(self.layers[k][position][0])
        positions.reverse()
        return positions


def _undominated(options: list[Option]) -> list[int]:
    """Return indices by rising size, without options that another one beats; the first of equals stays."""
    order = sorted(range(len(options)), key=lambda n: (options[n].nbytes, options[n].error, n))
    kept: list[int] = []
    for n in order:
        if not kept or options[n].error < options[kept[-1]].error:
            kept.append(n)
    return kept


def _lower_hull(options: list[Option]) -> list[int]:
    """Return the positions on the lower convex hull of (nbytes, error); sizes rise and errors fall."""
    hull: list[int] = []
    for n, option in enumerate(options):
        while len(hull) > 1 and _slope(options[hull[-2]], options[hull[-1]]) >= _slope(options[hull[-1]], option):
            hull.pop()
        hull.append(n)
    return hull


def _slope(a: Option, b: Option) -> float:
    """Return the change of the error per byte from the smaller to the larger option; negative."""
    return (b.error - a.error) / float(b.nbytes - a.nbytes)


def _content(options: list[Option], useful: list[int]) -> list[tuple[int, float]]:
    return [(options[n].nbytes, options[n].error) for n in useful]
