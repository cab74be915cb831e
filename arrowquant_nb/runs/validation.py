"""Original against quantized: every tensor, kept ones bit for bit, quantized ones against their recorded error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.comparisons import TensorComparison, ValidationReport
from arrowquant_nb.errors import ModelNotFoundError
from arrowquant_nb.runs.folding import stored_folding
from arrowquant_nb.runs.locating import SAMPLE_PREFIX, locate_model
from arrowquant_nb.storage.checkpoint import open_checkpoint
from arrowquant_nb.storage.folded_checkpoint import folded_checkpoint
from arrowquant_nb.storage.quantized import QuantizedModel, open_quantized

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from arrowquant_nb.storage.checkpoint import Checkpoint
    from arrowquant_nb.storage.lazy_tensor import LazyTensor

# Elements compared at a time: 8 MiB of float64.
_CHUNK = 1 << 20
# The recorded error is of float32 partial sums; a measured one that differs by more is not of this original.
_SQNR_TOLERANCE_DB = 0.01


@dataclass
class _Sums:
    ww: float = 0.0
    wq: float = 0.0
    qq: float = 0.0
    ee: float = 0.0
    worst: float = 0.0

    def add(self, weight: np.ndarray[Any, Any], quantized: np.ndarray[Any, Any]) -> None:
        """Add one block; all in float64."""
        w, q = weight.astype(np.float64).ravel(), quantized.astype(np.float64).ravel()
        e = q - w
        self.ww += float(w @ w)
        self.wq += float(w @ q)
        self.qq += float(q @ q)
        self.ee += float(e @ e)
        self.worst = max(self.worst, float(np.abs(e).max(initial=0.0)))

    def join(self, other: _Sums) -> None:
        """Add the sums of another tensor."""
        self.ww, self.wq, self.qq, self.ee = (
            self.ww + other.ww,
            self.wq + other.wq,
            self.qq + other.qq,
            self.ee + other.ee,
        )
        self.worst = max(self.worst, other.worst)

    @property
    def cosine(self) -> float:
        """Cosine similarity; 1 for two zero tensors."""
        norm = math.sqrt(self.ww) * math.sqrt(self.qq)
        return self.wq / norm if norm else float(self.ee == 0)

    @property
    def sqnr_db(self) -> float:
        """Signal over error in dB; inf when equal."""
        if self.ee == 0:
            return math.inf
        return 10 * math.log10(self.ww / self.ee) if self.ww else -math.inf


def validate_quality(
    original: str | Path, quantized: str | Path, progress_callback: Callable[[str, float], None] | None = None
) -> ValidationReport:
    """Compare two models; see `ArrowQuantV2.validate_quality`."""
    located = locate_model(original)
    total = _Sums()
    say = progress_callback or (lambda _message, _fraction: None)
    with open_quantized(quantized) as model:
        facts = model.facts
        # A component's own folder may be given in place of the pipeline it was taken from.
        component = facts.get("component") if (located.path / "model_index.json").is_file() else None
        with open_checkpoint(
            located.path, component=component, variant=facts.get("variant"), requantize=True
        ) as source:
            checkpoint = folded_checkpoint(source, stored_folding(model, source))
            recorded = {r["layer_name"]: r for r in model.stats().to_pylist()}
            tensors: list[TensorComparison] = []
            for number, name in enumerate(checkpoint.entries):
                say(name, number / len(checkpoint.entries))
                tensors.append(
                    _compare(checkpoint, model, name, recorded.get(name), total)
                    if name in model
                    else _absent(name, "missing")
                )
            tensors += [_absent(name, "extra") for name in model if name not in checkpoint.entries]
            n_weights = {t.name: model[t.name].n_weights for t in tensors if t.status == "close"}
    say("finished", 1.0)
    n = sum(n_weights.values())
    cosine = sum(t.cosine * n_weights[t.name] for t in tensors if t.name in n_weights) / n if n else 1.0
    return ValidationReport(located.name, str(quantized), cosine, total.sqnr_db, tuple(tensors))


def sample_name(original: str | Path) -> str:
    """Return which bundled sample the original is.

    Raises
    ------
    ModelNotFoundError
        It is none.
    """
    argument = locate_model(original).argument
    if not argument.startswith(SAMPLE_PREFIX):
        raise ModelNotFoundError(
            f"{original} is no bundled sample, so its network cannot be run here; leave samples out"
        )
    return argument.removeprefix(SAMPLE_PREFIX)


def _absent(name: str, status: str) -> TensorComparison:
    where = "the quantized model" if status == "missing" else "the original"
    return TensorComparison(name, status, 0, 0.0, -math.inf, math.inf, f"Not in {where}.")


def _different(name: str, tensor: LazyTensor, sentence: str) -> TensorComparison:
    return TensorComparison(name, "different", tensor.bit_width, 0.0, -math.inf, math.inf, sentence)


def _compare(
    checkpoint: Checkpoint, model: QuantizedModel, name: str, recorded: dict[str, Any] | None, total: _Sums
) -> TensorComparison:
    entry, tensor = checkpoint.entries[name], model[name]
    if entry.shape != tensor.shape:
        return _different(name, tensor, f"Shape {entry.shape} in the original, {tensor.shape} in the quantized model.")
    if tensor.kept:
        return _compare_kept(checkpoint, tensor)
    if checkpoint.hash_tensor(name) != tensor.source_hash:
        return _different(name, tensor, "Its weights are not those it was quantized from (another hash).")
    sums = _Sums()
    for row_start, tile in tensor.tiles():
        values = tile.dequantize()
        step = max(1, _CHUNK // max(1, tile.columns))
        for start in range(0, tile.rows, step):
            count = min(step, tile.rows - start)
            sums.add(checkpoint.read_rows(name, row_start + start, count), values[start : start + count])
    total.join(sums)
    promised = recorded["sqnr_db"] if recorded else math.nan
    holds = sums.sqnr_db == promised or abs(sums.sqnr_db - promised) <= _SQNR_TOLERANCE_DB
    sentence = (
        f"Measured {sums.sqnr_db:.2f} dB, as recorded."
        if holds
        else f"Measured {sums.sqnr_db:.2f} dB, but {promised:.2f} dB is recorded: the codes were changed."
    )
    status = "close" if holds else "different"
    return TensorComparison(name, status, tensor.bit_width, sums.cosine, sums.sqnr_db, sums.worst, sentence)


def _compare_kept(checkpoint: Checkpoint, tensor: LazyTensor) -> TensorComparison:
    if checkpoint.entries[tensor.name].kept_dtype != tensor.dtype:
        return _different(
            tensor.name, tensor, f"Kept as {tensor.dtype}, the original is {checkpoint.entries[tensor.name].dtype}."
        )
    if bytes(checkpoint.read_bytes(tensor.name)) == bytes(tensor.bytes_view()):
        sentence = f"Folded ({tensor.folding}), and bit-exact in that form." if tensor.folding else "Bit-exact."
        return TensorComparison(tensor.name, "equal", tensor.bit_width, 1.0, math.inf, 0.0, sentence)
    return _different(tensor.name, tensor, "A kept tensor must be bit-exact, and its bytes differ.")
