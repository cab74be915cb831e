"""The tensors of a safetensors file that are made from those of a model: planned first, produced one at a time.

Every target with safetensors has its own plan and its own way to produce; this keeps count between the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from arrowquant_nb.storage.safetensors_folder import TensorToWrite

__all__ = ["Parts"]


class Parts:
    """What stands in the file for each tensor of a model, and its bytes when their turn comes.

    Parameters
    ----------
    plan : the tensors to write for a tensor of the model, by its name.
    produce : their contents, by the names that `plan` gave; called once per tensor of the model.
    n_tensors : how many the model has.
    progress_callback : called with (name, fraction) before each.
    """

    def __init__(
        self,
        plan: Callable[[str], list[TensorToWrite]],
        produce: Callable[[str], Mapping[str, NDArray[Any] | memoryview]],
        n_tensors: int,
        progress_callback: Callable[[str, float], None] | None,
    ) -> None:
        self._plan = plan
        self._produce = produce
        self._n_tensors = n_tensors
        self._progress = progress_callback
        self._owners: dict[str, str] = {}
        self._ready: dict[str, NDArray[Any] | memoryview] = {}
        self._done = 0
        self.nbytes: dict[str, int] = {}
        """Bytes to write for each tensor of the model."""

    def tensors(self, name: str) -> list[TensorToWrite]:
        """Return the tensors to write for one of the model."""
        found = self._plan(name)
        self._owners |= {part.name: name for part in found}
        self.nbytes[name] = sum(part.nbytes for part in found)
        return found

    def content(self, written: str) -> memoryview:
        """Return the bytes of a tensor to write; those of one tensor of the model are asked for together."""
        if written not in self._ready:
            name = self._owners[written]
            if self._progress is not None:
                self._progress(name, self._done / self._n_tensors)
            self._done += 1
            self._ready = dict(self._produce(name))
        content = self._ready.pop(written)
        return (
            content
            if isinstance(content, memoryview)
            else np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
        )
