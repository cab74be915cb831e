"""Chooses what runs the kernels: the compiled module with one instruction set, or the NumPy path.

`ARROWQUANT_NB_ISA` (scalar, avx2, avx512, neon, numpy) forces one; an unknown or unsupported value is an error.
All choices give the same bytes. Reads the environment once, at import; knows nothing of tensors.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels import numpy_products, numpy_rotation, numpy_rows
from arrowquant_nb._kernels.job import RowsJob, StoredMatrix
from arrowquant_nb.errors import ConfigurationError

# Waiting threads sleep instead of spinning: a notebook kernel shares its cores with the user's other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

compiled_rows: Any = None
compiled_rotation: Any = None
compiled_product: Any = None
# Absent after a build with ARROWQUANT_NB_PURE=1 and in a bare source tree; present but broken is an error.
if find_spec("arrowquant_nb._kernels.rows") is not None:
    compiled_rows = import_module("arrowquant_nb._kernels.rows")
    compiled_rotation = import_module("arrowquant_nb._kernels.rotation")
# An installation in place that was built before the products were there lacks this one only.
if find_spec("arrowquant_nb._kernels.product") is not None:
    compiled_product = import_module("arrowquant_nb._kernels.product")

__all__ = [
    "COMPILED",
    "Matrix",
    "RowsJob",
    "StoredMatrix",
    "active_isa",
    "available_isas",
    "dequantize_rows",
    "multiply_codes",
    "multiply_floats",
    "multiply_ready",
    "product_isas",
    "quantize_rows",
    "ready_product",
    "resolve_threads",
    "rotate_rows",
]

COMPILED: bool = compiled_rows is not None
"""Whether the compiled module was found."""

ISAS = ("scalar", "avx2", "avx512", "neon", "numpy")
WEIGHTS_PER_THREAD = 1 << 16  # below this, waking a thread costs more than it saves

_in_forked_child = False


def _after_fork() -> None:
    """OpenMP's threads do not survive a fork and a second pool would hang: the child runs on its one thread."""
    global _in_forked_child  # noqa: PLW0603
    _in_forked_child = True
    if compiled_product is not None:
        compiled_product.run_alone()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def available_isas() -> tuple[str, ...]:
    """Names that ARROWQUANT_NB_ISA may have on this machine, fastest last, `numpy` first."""
    return ("numpy", *compiled_rows.supported_isas()) if compiled_rows is not None else ("numpy",)


def _choose_isa(forced: str | None) -> str:
    available = available_isas()
    if forced is None or forced == "":
        return available[-1]
    if forced not in ISAS:
        raise ConfigurationError(f"ARROWQUANT_NB_ISA={forced!r} is unknown: use one of {', '.join(ISAS)}")
    if forced not in available:
        why = "this machine or build lacks it" if COMPILED else "the kernels are not compiled"
        raise ConfigurationError(f"ARROWQUANT_NB_ISA={forced!r}: {why}; available: {', '.join(available)}")
    return forced


_ACTIVE = _choose_isa(os.environ.get("ARROWQUANT_NB_ISA"))


def active_isa() -> str:
    """Name of the instruction set in use."""
    return _ACTIVE


def resolve_threads(n_threads: int, n_weights: int | None = None) -> int:
    """Return how many threads to run.

    Parameters
    ----------
    n_threads : int
        1 or more is taken as it is; 0 = the cores this process may use, fewer when there is little work.
    n_weights : int, optional
        Weights in the whole call.

    Notes
    -----
    A child made by `os.fork` always gets 1: OpenMP's thread pool does not survive a fork.

    """
    if isinstance(n_threads, bool) or not isinstance(n_threads, int):
        raise TypeError(f"n_threads must be an int, got {type(n_threads).__name__}")
    if not 0 <= n_threads <= 1024:
        raise ConfigurationError(f"n_threads {n_threads} is not in 0..1024 (0 = all cores this process may use)")
    if _in_forked_child:
        return 1
    if n_threads:
        return n_threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if n_weights is None else max(1, min(cores, n_weights // WEIGHTS_PER_THREAD))


def quantize_rows(jobs: Sequence[RowsJob], n_threads: int, isa: str | None = None) -> None:
    """Fill the OUT arrays of all jobs in one parallel region; `isa` overrides the active one (tests, benchmarks)."""
    threads = resolve_threads(n_threads, sum(job.weight.size for job in jobs))
    isa = _choose_isa(isa) if isa else _ACTIVE
    (numpy_rows if isa == "numpy" else compiled_rows).quantize_rows(jobs, threads, isa)


def dequantize_rows(
    packed: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[Any],
    grid: str,
    bit_width: int,
    group_size: int,
    out: NDArray[Any],
    kind: str,
    n_threads: int,
    isa: str | None = None,
) -> None:
    """Decode into `out` (rows, columns) of dtype `kind` (float32, float16, bfloat16)."""
    threads = resolve_threads(n_threads, out.size)
    isa = _choose_isa(isa) if isa else _ACTIVE
    path = numpy_rows if isa == "numpy" else compiled_rows
    path.dequantize_rows(packed, scales, zero_points, grid, bit_width, group_size, out, kind, threads, isa)


def rotate_rows(
    values: NDArray[Any], signs: NDArray[Any], length: int, backward: bool, n_threads: int, isa: str | None = None
) -> None:
    """Rotate rows in place, see `numpy_rotation`; float64 always takes the NumPy path."""
    threads = resolve_threads(n_threads, values.size)
    isa = _choose_isa(isa) if isa else _ACTIVE
    path = numpy_rotation if isa == "numpy" or values.dtype != np.float32 else compiled_rotation
    path.rotate_rows(values, signs, length, backward, threads, isa)


def product_isas() -> tuple[str, ...]:
    """Names that the products take as `isa`: those of `available_isas`, and avx512vnni, which avx512 means there."""
    return ("numpy", *compiled_product.supported_isas()) if compiled_product is not None else ("numpy",)


def _choose_product_isa() -> str:
    """Take VNNI instructions for avx512 where there are."""
    if compiled_product is None:
        return "numpy"
    return "avx512vnni" if _ACTIVE == "avx512" and "avx512vnni" in product_isas() else _ACTIVE


_ACTIVE_PRODUCT = _choose_product_isa()


class Matrix(NamedTuple):
    """A stored matrix, and what the compiled products make of it once: its buffers checked, for many products."""

    stored: StoredMatrix
    compiled: Any

    @classmethod
    def of(cls, stored: StoredMatrix) -> "Matrix":
        """Check the buffers; they stay alive as long as the matrix."""
        return cls(stored, None if compiled_product is None else compiled_product.Matrix(stored))


def multiply_floats(
    x: NDArray[np.float32],
    weight: Matrix,
    bias: NDArray[np.float32] | None,
    out: NDArray[np.float32],
    n_threads: int,
    isa: str | None = None,
) -> None:
    """Fill `out` (tokens, rows) with x (tokens, columns) times the stored weight, transposed, plus the bias.

    Sums are float32 in an order of their own per instruction set, whatever the number of threads.
    """
    isa = isa or _ACTIVE_PRODUCT
    if isa == "numpy":
        numpy_products.multiply_floats(x, weight.stored, bias, out, n_threads, isa)
    else:
        compiled_product.multiply_floats(x, weight.compiled, bias, out, n_threads, isa)


def multiply_codes(
    x: NDArray[np.float32],
    weight: Matrix,
    bias: NDArray[np.float32] | None,
    out: NDArray[np.float32],
    bits: int,
    span: int,
    grid: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    n_threads: int,
    isa: str | None = None,
) -> None:
    """Do as `multiply_floats` with x rounded to codes first, and multiply the codes as integers.

    Parameters
    ----------
    x, weight, bias, out
        As there.
    bits
        Of a code of x, 4 or 8.
    span
        Columns of a token that share a grid, a multiple of 16, or at least the columns of x; the grid is that of
        `activation_grid.round_rows`.
    grid
        Scale and zero point per token, float32 (tokens,) each, instead of those of its range.
    n_threads, isa
        The same bytes for all of them.

    """
    isa = isa or _ACTIVE_PRODUCT
    scale, zero = (None, None) if grid is None else grid
    if isa == "numpy":
        numpy_products.multiply_codes(x, weight.stored, bias, out, bits, span, scale, zero)
    else:
        compiled_product.multiply_codes(x, weight.compiled, bias, out, bits, span, scale, zero, n_threads, isa)


def ready_product(
    torch: tuple[Any, ...], weight: Matrix, parts: tuple[Any, ...], bias: Any, inputs: Any, bits: int, span: int
) -> Any:
    """Return what `multiply_ready` multiplies with, see `ReadyProduct` in kernels/ready_product.pxi.

    None without compiled kernels for this machine: those of NumPy and of plain C are slower than torch, which then
    multiplies panels of decoded rows. None too with a torch before 2.10, which does not say where a tensor lies.
    """
    if _ACTIVE_PRODUCT in ("numpy", "scalar") or not compiled_product.reads(torch[0]):
        return None
    return compiled_product.ReadyProduct(torch, weight.compiled, parts, bias, inputs, bits, span, _ACTIVE_PRODUCT)


def _never_ready(layer: dict[str, Any], x: Any, is_call: bool = False) -> None:
    """Stand in for the compiled one: no product is ready."""


multiply_ready: Any = _never_ready if compiled_product is None else compiled_product.multiply_ready
"""What a linear layer calls first, see kernels/ready_product.pxi."""
