"""The loop with sources and sinks in memory: order, batches, tiles, fallback, cancelling."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import QuantizationError, quantize_tensor
from arrowquant_nb.core.batches import BATCH_WEIGHTS, TILE_WEIGHTS, batches
from arrowquant_nb.core.orchestrator import quantize_layers
from arrowquant_nb.core.task import LayerTask
from arrowquant_nb.events import AttemptFinished, LayerFinished, LayerProgress, LayerStarted
from arrowquant_nb.runs.kept_tensors import kept_report


def task(index, rows, columns, bit_width=4, min_accuracy=0.5, **changes):
    values = {
        "index": index,
        "name": f"layers.{index}.weight",
        "shape": (rows, columns),
        "dtype": "float32",
        "rows": rows,
        "columns": columns,
        "source_nbytes": 4 * rows * columns,
        "bit_width": bit_width,
        "group_size": 64,
        "methods": ["rtn"],
        "gain_correction": True,
        "min_accuracy": min_accuracy,
        "role": "linear",
        "reason": "A reason.",
        "rule": "bit_width",
    }
    return LayerTask(**(values | changes))


class Memory:
    """Source, sink and control at once: arrays in, tiles and events out."""

    def __init__(self, weights, n_threads=1, fail_fast=False, cancel_after=None, reusable=()):
        self.weights = weights
        self.n_threads = n_threads
        self.fail_fast = fail_fast
        self.events = []
        self.begun = []
        self.stored = {}
        self.discarded = []
        self._asked = itertools.count()
        self._cancel_after = cancel_after
        self._reusable = dict(reusable)
        self.layer_inputs = {}

    def read_rows(self, name, row_start, row_count):
        return self.weights[name][row_start : row_start + row_count]

    def inputs(self, task):
        return self.layer_inputs.get(task.name)

    def reuse(self, task):
        return self._reusable.get(task.name)

    def keep(self, task):
        self.stored[task.name] = "kept"
        return kept(task)

    def begin(self, task, bit_width):
        self.begun.append((task.name, bit_width))
        return Writer(self, task.name)

    def emit(self, event):
        self.events.append(event)

    def cancelled(self):
        return self._cancel_after is not None and next(self._asked) >= self._cancel_after


class Writer:
    def __init__(self, memory, name):
        self._memory, self._name, self._tiles = memory, name, []

    def append(self, row_start, tensor):
        self._tiles.append((row_start, tensor))

    def commit(self, report, facts):
        self._memory.stored[self._name] = self._tiles

    def discard(self):
        self._memory.discarded.append(self._name)


def kept(task):
    return kept_report(task, w_absmax=1.0)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(tasks, memory):
    return quantize_layers(tasks, memory, memory, memory)


def test_small_layers_share_a_batch_and_a_large_one_stands_alone():
    side = 1 << 10
    tasks = [task(k, side, side // 4) for k in range(9)] + [task(9, side, 8 * side), task(10, side, side)]
    groups = batches(tasks)
    assert [t.index for group in groups for t in group] == list(range(11))
    for group in groups:
        assert len(group) == 1 or sum(t.n_weights for t in group) <= BATCH_WEIGHTS
    assert [9] in [[t.index for t in group] for group in groups]


def test_no_layers_give_no_reports():
    assert run([], Memory({})) == []


def test_reports_and_stored_tiles_come_in_order_and_equal_single_quantization():
    tasks = [task(k, 8 + k, 100 + k) for k in range(5)]
    memory = Memory({t.name: gaussian(t.rows, t.columns, seed=t.index) for t in tasks})
    reports = run(tasks, memory)
    assert [r.name for r in reports] == [t.name for t in tasks]
    for t, report in zip(tasks, reports, strict=True):
        [(start, tensor)] = memory.stored[t.name]
        alone = quantize_tensor(memory.weights[t.name], 4, 64, "rtn")
        assert start == 0
        np.testing.assert_array_equal(tensor.packed, alone.packed)
        assert report.cosine == alone.statistics.cosine
        assert report.nbytes == alone.nbytes


def test_a_layer_of_several_tiles_is_streamed_and_its_figures_are_those_of_the_whole():
    columns = 4096
    rows = TILE_WEIGHTS // columns + 5
    big = task(0, rows, columns)
    memory = Memory({big.name: gaussian(rows, columns)}, n_threads=2)
    [report] = run([big], memory)
    tiles = memory.stored[big.name]
    assert [start for start, _ in tiles] == [0, rows - 5]
    whole = quantize_tensor(memory.weights[big.name], 4, 64, "rtn")
    np.testing.assert_array_equal(np.concatenate([t.dequantize() for _, t in tiles]), whole.dequantize())
    assert report.sqnr_db == pytest.approx(whole.statistics.sqnr_db, rel=1e-12)
    [progress] = [e for e in memory.events if isinstance(e, LayerProgress)]
    assert 0 < progress.fraction < 1


def test_events_of_a_layer_come_in_order():
    t = task(0, 64, 64, bit_width=2, min_accuracy=0.99)
    memory = Memory({t.name: gaussian(64, 64)})
    run([t], memory)
    kinds = [type(e) for e in memory.events]
    assert kinds == [LayerStarted, AttemptFinished, AttemptFinished, LayerFinished]
    assert [(e.bit_width, e.passed) for e in memory.events[1:3]] == [(2, False), (4, True)]


def test_every_rung_is_tried_and_reported_and_only_the_last_is_stored():
    t = task(0, 64, 64, bit_width=2, min_accuracy=0.9999)
    memory = Memory({t.name: gaussian(64, 64)})
    [report] = run([t], memory)
    assert memory.begun == [(t.name, 2), (t.name, 4), (t.name, 8)]
    assert [a.bit_width for a in report.attempts] == [2, 4, 8]
    assert [a.passed for a in report.attempts] == [False, False, True]
    assert (report.requested_bit_width, report.bit_width, report.fell_back) == (2, 8, True)
    assert memory.stored[t.name][0][1].bit_width == 8
    assert memory.discarded == [t.name, t.name]


def test_in_one_batch_only_the_failing_layers_go_wider():
    easy, hard = task(0, 64, 64, 2, 0.99), task(1, 64, 64, 2, 0.99)
    memory = Memory({easy.name: np.sign(gaussian(64, 64)), hard.name: gaussian(64, 64)})
    first, second = run([easy, hard], memory)
    assert (first.bit_width, second.bit_width) == (2, 4)
    assert first.cosine == 1.0


def test_a_layer_that_fails_everywhere_is_reported_and_not_stored_and_the_others_go_on():
    bad, good = task(0, 64, 64, 4, 1.0), task(1, 64, 64, 4, 0.5)
    memory = Memory({bad.name: gaussian(64, 64), good.name: gaussian(64, 64)})
    first, second = run([bad, good], memory)
    assert not first.passed
    assert second.passed
    assert list(memory.stored) == [good.name]


def test_fail_fast_raises_at_the_first_failed_gate():
    bad, good = task(0, 64, 64, 2, 1.0), task(1, 64, 64, 4, 0.5)
    memory = Memory({bad.name: gaussian(64, 64), good.name: gaussian(64, 64)}, fail_fast=True)
    with pytest.raises(QuantizationError, match=r"layers\.0\.weight"):
        run([bad, good], memory)
    assert memory.stored == {}


def test_a_reusable_layer_is_neither_read_nor_begun():
    t = task(0, 64, 64)
    memory = Memory({}, reusable={t.name: kept(t)})
    assert run([t], memory) == [kept(t)]
    [event] = memory.events
    assert isinstance(event, LayerFinished)
    assert event.reused


def test_a_kept_tensor_goes_to_the_sink_without_kernels():
    t = task(0, 64, 64, bit_width=16)
    memory = Memory({})
    assert [r.action for r in run([t], memory)] == ["kept"]
    assert memory.begun == []


@pytest.mark.parametrize("n", range(4))
def test_cancelling_between_batches_returns_the_reports_so_far(n):
    tasks = [task(k, 1024, 2100) for k in range(4)]
    memory = Memory({t.name: gaussian(4, 4).repeat(256, 0).repeat(525, 1) for t in tasks}, cancel_after=4 * n)
    reports = run(tasks, memory)
    assert [r.name for r in reports] == [t.name for t in tasks[:n]]
    assert set(memory.stored) == {r.name for r in reports}


def test_an_error_of_the_source_comes_through_and_discards_the_attempt():
    t = task(0, 4, 64)
    memory = Memory({})
    with pytest.raises(KeyError):
        run([t], memory)
    assert memory.discarded == [t.name]
    assert memory.stored == {}


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.floats(0.5, 1.0), st.floats(0.5, 1.0),
    st.sampled_from(["rtn", "uls", "hqq"]), st.floats(1.5, 9.0),
)  # fmt: skip
@settings(max_examples=25)
def test_no_layer_gets_fewer_bits_than_asked_for_and_a_looser_gate_never_more(seed, bits, one, other, method, tails):
    w = np.random.default_rng(seed).standard_t(tails, (6, 96)).astype(np.float32)

    def chosen(asked):
        memory = Memory({"layers.0.weight": w})
        work = task(0, 6, 96, bit_width=bits, min_accuracy=asked, methods=[method])
        (report,) = quantize_layers([work], memory, memory, memory)
        tried = [attempt.bit_width for attempt in report.attempts]
        assert tried == [b for b in (2, 4, 8) if bits <= b <= tried[-1]]
        return (report.bit_width, not report.passed), report.to_dict()

    (strict, first), (loose, _), (again, second) = (
        chosen(a) for a in (max(one, other), min(one, other), max(one, other))
    )
    assert bits <= loose[0] <= strict[0] or loose[1] <= strict[1]
    assert loose <= strict
    assert (strict, first) == (again, second)
