"""BLAS on one thread, for products whose last bits must not depend on the number of threads.

The limit belongs to the process, so several threads of ours may hold it at once: the first sets it and the last puts
back what was there. Knows nothing of what is multiplied.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["BLOCK_ROWS", "single_threaded_blas"]

BLOCK_ROWS = 256
"""Rows of one product; fixed, because the shape of a product may decide its last bits."""

_lock = threading.Lock()
_holders = 0
_limit: threadpool_limits | None = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread for the duration of a `with` block, from any number of threads."""
    global _holders, _limit  # noqa: PLW0603 - the state is the process's own
    with _lock:
        if _holders == 0:
            _limit = threadpool_limits(1, "blas")
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0 and _limit is not None:
                _limit.restore_original_limits()
                _limit = None
