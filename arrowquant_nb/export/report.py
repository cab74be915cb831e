"""What an export did: per tensor what it became and what that cost, and what the target could not hold.

Plain values; the rooms of the targets fill them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from arrowquant_nb.json_form import JsonForm

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ExportReport", "TensorExport"]


@dataclass(frozen=True)
class TensorExport(JsonForm):
    """One tensor on its way out."""

    name: str
    """Name in the source model."""
    shape: tuple[int, ...]
    """Shape in the source model."""
    stored_as: str
    """What the quantized model holds: a dtype, or width, method and group size."""
    written_as: str
    """Type in the target."""
    nbytes: int
    """Bytes of data in the target."""
    exact: bool
    """True when a reader of the target gets the very float32 values that dequantizing gives (kept: the same bytes)."""
    sqnr_db: float | None = None
    """Where not exact: signal over error of the written values against the dequantized ones, in dB."""
    reason: str = ""
    """Where not exact: why."""


@dataclass(frozen=True)
class ExportReport(JsonForm):
    """One export."""

    _headline: ClassVar[tuple[str, ...]] = ("warnings",)

    target: str
    """safetensors, gguf, comfy, compressed-tensors or diffusers."""
    output: str
    """The folder or file that was written."""
    nbytes: int
    """Bytes of all tensors in it."""
    tensors: tuple[TensorExport, ...]
    """In the order of the model."""
    not_held: tuple[str, ...] = ()
    """What the model has and the target cannot hold, a sentence each."""
    remarks: tuple[str, ...] = ()
    """What a user of the target should know, a sentence each."""

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"tensors": TensorExport}

    @property
    def rounded(self) -> tuple[TensorExport, ...]:
        """The tensors whose values changed."""
        return tuple(tensor for tensor in self.tensors if not tensor.exact)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that a user has to see: what is not held, and what was rounded again at what cost."""
        lines = [
            f"{_count(tensors)} stored as {stored} rounded to {written}{_cost(tensors)}: {tensors[0].reason}"
            for (stored, written, exact, _), tensors in self._kinds().items()
            if not exact
        ]
        return (*self.not_held, *lines)

    def _kinds(self) -> dict[tuple[str, str, bool, str], list[TensorExport]]:
        kinds: dict[tuple[str, str, bool, str], list[TensorExport]] = {}
        for tensor in self.tensors:
            kinds.setdefault((tensor.stored_as, tensor.written_as, tensor.exact, tensor.reason), []).append(tensor)
        return kinds

    def __str__(self) -> str:
        """Return a few lines: where, how large, what became of what, and the remarks; `warnings` are not among them."""
        kinds = self._kinds()
        width = max((len(stored) for stored, *_ in kinds), default=0)
        rows = [
            f"  {stored:<{width}}  -> {written:<12} {_count(tensors)}, "
            f"{'exact' if exact else 'rounded' + _cost(tensors)}"
            for (stored, written, exact, _), tensors in kinds.items()
        ]
        head = f"{self.target}: {self.output}, {self.nbytes / 1e6:.2f} MB in {_count(self.tensors)}"
        return "\n".join([head, *rows, *(f"- {line}" for line in self.remarks)])


def _count(tensors: Sequence[TensorExport]) -> str:
    return "1 tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"


def _cost(tensors: Sequence[TensorExport]) -> str:
    measured = [tensor for tensor in tensors if tensor.sqnr_db is not None]
    if not measured:
        return ""
    worst = min(measured, key=lambda tensor: tensor.sqnr_db or 0.0)
    return f", at worst {worst.sqnr_db:.1f} dB ({worst.name})"
