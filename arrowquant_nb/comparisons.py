"""What a validation and a reproduction hand back: models compared tensor by tensor, folders file by file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from arrowquant_nb import comparison_tables
from arrowquant_nb.json_form import JsonForm


@dataclass(frozen=True)
class TensorComparison(JsonForm):
    """One tensor of the original against its quantized twin; `status` is equal, close, different, missing or extra."""

    name: str
    status: str
    bit_width: int
    cosine: float
    sqnr_db: float
    max_abs_error: float
    sentence: str

    @property
    def passed(self) -> bool:
        """True when the tensor is there and as good as its report promises."""
        return self.status in ("equal", "close")


@dataclass(frozen=True, repr=False)
class ValidationReport(JsonForm):
    """Every tensor compared; `passed` is false when one is missing, extra, or not what the manifest promises.

    `cosine_similarity` and `sqnr_db` are of the quantized tensors, as in `QuantizationResult`. `network` holds what
    `evaluate_sample` measured at the network's output, rounded inputs included; empty where that was not asked for.
    """

    _headline: ClassVar[tuple[str, ...]] = ("passed",)

    original: str
    quantized: str
    cosine_similarity: float
    sqnr_db: float
    tensors: tuple[TensorComparison, ...]
    network: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"tensors": TensorComparison}

    @property
    def passed(self) -> bool:
        """True when every tensor passed."""
        return all(t.passed for t in self.tensors)

    @property
    def failures(self) -> tuple[TensorComparison, ...]:
        """The tensors that did not pass."""
        return tuple(t for t in self.tensors if not t.passed)

    def __repr__(self) -> str:
        return (
            f"ValidationReport({self.quantized!r}, {'passed' if self.passed else 'FAILED'}, "
            f"{len(self.tensors)} tensors, {len(self.failures)} failures)"
        )

    def __str__(self) -> str:
        return comparison_tables.validation_text(self)

    def _repr_html_(self) -> str:
        return comparison_tables.validation_html(self)


@dataclass(frozen=True, repr=False)
class ReproductionReport(JsonForm):
    """Files of a model against a fresh run of its `run.json`; byte identity is promised for `compared` files."""

    _headline: ClassVar[tuple[str, ...]] = ("passed",)

    folder: str
    identical: tuple[str, ...]
    different: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    environment_changes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True when every compared file is byte-identical."""
        return not (self.different or self.missing or self.extra)

    def __repr__(self) -> str:
        return f"ReproductionReport({self.folder!r}, {'byte-identical' if self.passed else 'NOT reproduced'})"

    def __str__(self) -> str:
        return comparison_tables.reproduction_text(self)
