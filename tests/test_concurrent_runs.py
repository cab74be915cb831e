"""Several runs at once: all results in order, never more than the limit, one failure or cancellation stops them all."""

import asyncio
import threading

import pytest
from conftest import tree

import arrowquant_nb as aq
from arrowquant_nb.errors import ConfigurationError, ModelNotFoundError

RTN = aq.DiffusionQuantConfig(method="rtn", group_size=128, gain_correction=False)


def test_one_model_gives_one_result(models, tmp_path):
    result = asyncio.run(aq.quantize_async(models.mixed, tmp_path / "out", RTN))
    assert result.quantized_path == str(tmp_path / "out")
    assert {r.method for r in result.layers if r.action == "quantized"} == {"rtn"}


def test_several_models_run_within_the_limit_and_come_back_in_order(models, tmp_path):
    outputs = [tmp_path / name for name in ("a", "b", "c")]
    working, most, heard = set(), [0], {}

    def listen(message, fraction):
        name = message.partition(":")[0]
        working.add(name)
        most[0] = max(most[0], len(working))
        heard.setdefault(name, []).append(fraction)
        if fraction == 1.0:
            working.discard(name)

    configs = [RTN, RTN.replace(bit_width=8), RTN]
    found = asyncio.run(aq.quantize_async([models.mixed] * 3, outputs, configs, listen, limit=2))
    assert [r.quantized_path for r in found] == [str(p) for p in outputs]
    assert [r.bit_width for r in found] == [4, 8, 4]
    assert most[0] <= 2
    assert all(fractions == sorted(fractions) and fractions[-1] == 1.0 for fractions in heard.values())
    assert tree(outputs[0]) == tree(outputs[2]), "sharing the cores changes no byte"


def test_the_first_error_is_raised_and_what_has_finished_stays(models, tmp_path):
    outputs = [tmp_path / "good", tmp_path / "bad"]
    with pytest.raises(ModelNotFoundError, match="no model at"):
        asyncio.run(aq.quantize_async([models.mixed, tmp_path / "missing"], outputs, RTN, limit=1))
    assert len(aq.open_quantized(outputs[0])) == 5


def test_cancelling_the_task_stops_every_run_and_leaves_no_thread(models, tmp_path):
    outputs = [tmp_path / "a", tmp_path / "b"]
    begun = threading.Event()

    async def begin_and_cancel():
        task = asyncio.ensure_future(aq.quantize_async([models.dit] * 2, outputs, RTN, lambda *_: begun.set(), limit=2))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(begin_and_cancel())
    assert not [t for t in threading.enumerate() if t.name.startswith("arrowquant")]
    resumed = asyncio.run(aq.quantize_async([models.dit] * 2, outputs, RTN))
    assert tree(outputs[0]) == tree(outputs[1])
    assert len(resumed) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["a", "b"], ["x"]), "output_path has 1 entries for 2 models"),
        ((["a", "b"], "x"), "output_path must be a sequence of 2"),
        ((["a", "b"], ["x", "x"]), "same output"),
        ((["a"], ["x"], [RTN, RTN]), "config has 2 entries for 1 models"),
        (("a", ["x"]), "one model needs one output"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_runs(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        asyncio.run(aq.quantize_async(*arguments))


@pytest.mark.parametrize("limit", [0, True, 1.5])
def test_a_limit_is_an_integer_of_at_least_one(limit):
    with pytest.raises(ConfigurationError, match="limit is"):
        asyncio.run(aq.quantize_async(["a"], ["x"], limit=limit))
