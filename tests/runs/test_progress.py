"""Progress, events and every way to stop a run from outside."""

import asyncio
import itertools
import json
import threading

import pytest

from arrowquant_nb import ArrowQuantV2, QuantizationError
from arrowquant_nb.events import event_from_dict
from tests.conftest import dit_tensors, tree, write_checkpoint


@pytest.fixture(scope="module")
def expected(models):
    return tree(models.quantized("dit"))


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_progress_rises_from_zero_to_exactly_one_with_a_call_for_every_layer(models, tmp_path):
    seen = []
    result = ArrowQuantV2().quantize_diffusion_model(
        models.dit, tmp_path / "model", progress_callback=lambda m, f: seen.append((m, f))
    )
    fractions = [f for _, f in seen]
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)
    assert fractions.count(1.0) == 1
    assert all(type(f) is float and type(m) is str for m, f in seen)
    for report in result.layers:
        assert any(report.name in m for m, _ in seen)
    again = []
    ArrowQuantV2().quantize_diffusion_model(
        models.dit, tmp_path / "model", progress_callback=lambda m, f: again.append(f)
    )
    assert (again[0], again[-1]) == (0.0, 1.0)
    assert len(again) >= len(result.layers)


class Enough(Exception):
    """Raised by a callback."""


@pytest.mark.parametrize("n", [1, 5, 20, 34])
def test_an_exception_in_the_callback_stops_the_run_and_comes_through(models, expected, tmp_path, n):
    calls = []

    def callback(message, fraction):
        calls.append(fraction)
        if len(calls) == n:
            raise Enough("mine")

    with pytest.raises(Enough, match="mine"):
        ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model", progress_callback=callback)
    assert len(calls) <= n + 1
    assert not list((tmp_path / "model").glob(".tmp-*"))
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    assert tree(tmp_path / "model") == expected


def test_events_are_numbered_timed_and_read_back(models, tmp_path):
    heard = []
    result = ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model", on_event=heard.append)
    written = events_of(tmp_path / "model")
    assert [e.to_dict() for e in heard] == written
    assert [event_from_dict(e) for e in written] == heard
    assert [e.seq for e in heard] == list(range(len(heard)))
    assert all(a.t_s <= b.t_s for a, b in itertools.pairwise(heard))
    assert {e.v for e in heard} == {1}
    assert heard[0].kind == "run_started"
    assert heard[-1].kind == "run_finished"
    assert [r["name"] for r in heard[0].rows] == [r.name for r in result.layers]
    assert heard[0].n_layers == 32
    finished = [e for e in heard if e.kind == "layer_finished"]
    assert sorted(e.index for e in finished) == list(range(32))
    assert [e.report for e in sorted(finished, key=lambda e: e.index)] == [r.to_record() for r in result.layers]
    assert heard[-1].summary["compression_ratio"] == result.compression_ratio


def test_a_run_says_what_it_took_over(models, tmp_path):
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    reused = {e["name"] for e in events_of(tmp_path / "model") if e["event"] == "layer_finished" and e.get("reused")}
    assert "transformer_blocks.0.attn1.to_q.weight" in reused


def test_cancel_from_a_callback_ends_in_an_error_that_says_how_to_resume(tmp_path):
    source = write_checkpoint(tmp_path / "source", dit_tensors(n_blocks=10))
    quantizer = ArrowQuantV2()

    def callback(message, fraction):
        if "INT" in message:
            quantizer.cancel()

    with pytest.raises(QuantizationError, match=r"cancelled .* resume"):
        quantizer.quantize_diffusion_model(source, tmp_path / "model", progress_callback=callback)
    last = events_of(tmp_path / "model")[-1]
    assert last["event"] == "run_cancelled"
    assert not (tmp_path / "model" / "manifest.json").exists()
    assert quantizer.quantize_diffusion_model(source, tmp_path / "model").reused == last["n_committed"] > 3
    quantizer.quantize_diffusion_model(source, tmp_path / "fresh")
    assert tree(tmp_path / "model") == tree(tmp_path / "fresh")


def test_cancel_from_another_thread(models, tmp_path):
    quantizer = ArrowQuantV2()
    started = threading.Event()

    def wait_for_cancel(event):
        if event.kind == "run_started":
            started.set()
            assert canceller.join(60) is None

    canceller = threading.Thread(target=lambda: started.wait(60) and quantizer.cancel())
    canceller.start()
    with pytest.raises(QuantizationError, match="cancelled"):
        quantizer.quantize_diffusion_model(models.dit, tmp_path / "model", on_event=wait_for_cancel)


def test_cancelling_the_task_stops_the_run_and_waits_for_it(models, expected, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()
        release = threading.Event()

        def hold(event):
            if event.kind == "run_started":
                loop.call_soon_threadsafe(begun.set)
                release.wait(60)

        task = asyncio.ensure_future(
            ArrowQuantV2().quantize_diffusion_model_async(models.dit, tmp_path / "model", on_event=hold)
        )
        await asyncio.wait_for(begun.wait(), 60)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert events_of(tmp_path / "model")[-1]["event"] == "run_cancelled"
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    assert tree(tmp_path / "model") == expected


def test_async_twins_give_the_same_answers(models, tmp_path):
    async def main():
        quantizer = ArrowQuantV2()
        plan = await quantizer.plan_async(models.dit)
        result = await quantizer.quantize_diffusion_model_async(models.dit, tmp_path / "model")
        report = await quantizer.validate_quality_async(models.dit, tmp_path / "model")
        return plan, result, report

    plan, result, report = asyncio.run(main())
    assert plan == ArrowQuantV2().plan(models.dit)
    assert result.payload_nbytes == sum(r.nbytes for r in plan.rows)
    assert report.passed
