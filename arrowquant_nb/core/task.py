"""What the loop works on and what it talks to: the task of one tensor, and the protocols of source, sink and control.

Knows nothing of files, formats, threads or widgets; `runs` implements the protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from arrowquant_nb.events import Event
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.quantizers.trials import LayerInputs


class LayerTask:
    """One tensor to process: its place and shape, and the effective settings for it."""

    def __init__(
        self,
        index: int,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        rows: int,
        columns: int,
        source_nbytes: int,
        bit_width: int,
        group_size: int,
        methods: list[str],
        gain_correction: bool,
        min_accuracy: float,
        role: str,
        reason: str,
        rule: str,
        file: str = "",
        rotation: str = "none",
        seed: int = 0,
        low_rank: int = 0,
        compensated: bool = False,
        min_output_sqnr_db: float | None = None,
        scale_format: str = "float16",
        activation_bit_width: int = 16,
        held: bool = False,
        folding: str = "",
        ordered_method: str = "",
    ) -> None:
        self.index = index
        self.file = file
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.rows = rows
        self.columns = columns
        self.source_nbytes = source_nbytes
        self.bit_width = bit_width
        self.group_size = group_size
        self.methods = methods
        self.gain_correction = gain_correction
        self.min_accuracy = min_accuracy
        self.role = role
        self.reason = reason
        self.rule = rule
        self.rotation = rotation
        self.seed = seed
        self.low_rank = low_rank
        self.compensated = compensated
        self.min_output_sqnr_db = min_output_sqnr_db
        self.scale_format = scale_format
        self.activation_bit_width = activation_bit_width  # 16: the layer's input stays float
        # A size limit decided the width: a missed gate is recorded, and no wider one is tried.
        self.held = held
        # What folding equalization did to the weights before they came here, in words; empty: nothing.
        self.folding = folding
        self.ordered_method = ordered_method  # by the user, for this layer; "": the run's method

    def stored_as(
        self,
        bit_width: int,
        group_size: int,
        scale_format: str,
        methods: list[str],
        dtype: str,
        rule: str,
        reason: str,
        min_accuracy: float,
        held: bool,
    ) -> LayerTask:
        """Return the same tensor with another width, or kept in `dtype` with 16 bits, and what decided so."""
        kept = bit_width == 16
        return LayerTask(
            self.index,
            self.name,
            self.shape,
            dtype,
            self.rows,
            self.columns,
            self.source_nbytes,
            bit_width,
            0 if kept else group_size,
            [] if kept else methods,
            self.gain_correction,
            min_accuracy,
            self.role,
            reason,
            rule,
            self.file,
            "none" if kept else self.rotation,
            self.seed,
            0 if kept else self.low_rank,
            self.compensated and not kept,
            self.min_output_sqnr_db,
            "" if kept else scale_format,
            16 if kept else self.activation_bit_width,
            held,
            self.folding,
            "" if kept else self.ordered_method,
        )

    def folded(self, words: str, kept_dtype: str) -> LayerTask:
        """Return the same tensor with equalization folded into it; a kept one is carried over in `kept_dtype`."""
        how = ", kept as float32" if self.kept else ""
        sentence = f"Folded: {words} by equalization scales{how}; the float model computes what it did before."
        found = self.stored_as(
            self.bit_width, self.group_size, self.scale_format, self.methods, kept_dtype if self.kept else self.dtype,
            self.rule, f"{self.reason} {sentence}", self.min_accuracy, self.held,
        )  # fmt: skip
        found.folding = words
        return found

    @property
    def method(self) -> str:
        """Grid that comes first, "" for a kept tensor."""
        return self.methods[0] if self.methods else ""

    @property
    def n_weights(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    @property
    def kept(self) -> bool:
        """True when the tensor is carried over bit-exactly."""
        return self.bit_width == 16


class TileWriter(Protocol):
    """Receives the tiles of one attempt at one layer."""

    def append(self, row_start: int, tensor: QuantizedTensor) -> None:
        """Take the tile that begins at `row_start`."""

    def commit(self, report: LayerReport, facts: dict[str, Any]) -> None:
        """Make the attempt the layer's stored form; `facts` say what is done to its input."""

    def discard(self) -> None:
        """Forget the attempt."""


class Source(Protocol):
    """Where weights come from."""

    def read_rows(self, name: str, row_start: int, row_count: int) -> NDArray[Any]:
        """Return rows of the matrix view; the array may be overwritten by the next call for a large tensor."""

    def inputs(self, task: LayerTask) -> LayerInputs | None:
        """Return what calibration knows of a layer's inputs; None without."""


class Sink(Protocol):
    """Where results go."""

    def reuse(self, task: LayerTask) -> LayerReport | None:
        """Return the report of an identical layer committed earlier, or None."""

    def keep(self, task: LayerTask) -> LayerReport:
        """Carry a tensor over bit-exactly."""

    def begin(self, task: LayerTask, bit_width: int) -> TileWriter:
        """Open an attempt."""


class Control(Protocol):
    """What a run listens to and speaks through."""

    n_threads: int
    fail_fast: bool

    def emit(self, event: Event) -> None:
        """Record an event."""

    def cancelled(self) -> bool:
        """Tell whether the user asked to stop."""
