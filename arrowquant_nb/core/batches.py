"""In which portions the loop works: tiles of a large layer, batches of small ones.

Pure arithmetic over tasks; whoever reads weights asks here which rows come next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from arrowquant_nb.core.task import LayerTask

# A tile is the unit of reading, quantizing and storing: 8 Mi weights are 32 MiB of float32 and at most 8 MiB of codes.
TILE_WEIGHTS: Final = 1 << 23
# Layers are gathered until they hold this many weights, so that one parallel region covers many small ones.
BATCH_WEIGHTS: Final = 1 << 21


def batches(tasks: list[LayerTask]) -> list[list[LayerTask]]:
    """Group consecutive tensors: small layers together up to `BATCH_WEIGHTS`, a large layer alone.

    Kept tensors take no part in the kernels and ride along with whatever batch they stand in.
    """
    groups: list[list[LayerTask]] = [[]]
    open_weights = 0
    for task in tasks:
        weights = 0 if task.kept else task.n_weights
        if open_weights and open_weights + weights > BATCH_WEIGHTS:
            groups.append([])
            open_weights = 0
        groups[-1].append(task)
        open_weights += weights
    return groups


def tile_rows(columns: int) -> int:
    """Rows of one tile of a matrix with so many columns."""
    return max(1, TILE_WEIGHTS // max(1, columns))


def rows_at_once(task: LayerTask) -> int:
    """Rows of a layer that are read and quantized together: one tile, or all of them for GPTQ or a low-rank branch."""
    return task.rows if task.low_rank or task.compensated else tile_rows(task.columns)
