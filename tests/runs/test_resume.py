"""Kill at any moment, run again: the same bytes, and nothing committed is done twice."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid

import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, OutputError, open_quantized
from arrowquant_nb.events import LayerFinished
from tests.conftest import dit_tensors, tree, write_checkpoint

# Says on its standard output when it is ready, then one line per event; events in between commit on another thread.
CHILD = """
import json, sys
import arrowquant_nb.api, arrowquant_nb.storage.parquet_v2, arrowquant_nb.samples
from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig
quantizer = ArrowQuantV2(DiffusionQuantConfig(**json.loads(sys.argv[3])))
print("ready", flush=True)
quantizer.quantize_diffusion_model(sys.argv[1], sys.argv[2], on_event=lambda e: print(e.kind, flush=True))
"""
N_EVENTS = 84


def start(source, output, **settings):
    arguments = [sys.executable, "-c", CHILD, str(source), str(output), json.dumps(settings)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def kill_after(child, n_lines, delay_s):
    """SIGKILL a child some time after its n-th line; return False when it was faster."""
    with child:
        for _ in range(n_lines):
            if not child.stdout.readline():
                break
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    return child.returncode == -signal.SIGKILL


def whole_lines(path):
    """Read JSON lines; the last one may be torn, no other."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def committed(output):
    """Return inode and mtime of every journalled file that is there."""
    names = [commit["file"] for commit in whole_lines(output / "journal.jsonl")]
    return {n: ((output / n).stat().st_ino, (output / n).stat().st_mtime_ns) for n in names}


def check_after_kill(output):
    """What stands under a final name is whole, and a manifest stands for a whole model."""
    if (output / "manifest.json").exists():
        assert open_quantized(output, "full").verify() == 32
    for commit in whole_lines(output / "journal.jsonl"):
        assert (output / commit["file"]).stat().st_size == commit["nbytes"]
    assert [e["seq"] for e in whole_lines(output / "events.jsonl")] == list(
        range(len(whole_lines(output / "events.jsonl")))
    )


def finish(source, output, expected, **settings):
    result = ArrowQuantV2(DiffusionQuantConfig(**settings)).quantize_diffusion_model(source, output)
    assert tree(output) == expected
    assert not list(output.rglob(".tmp-*"))
    return result


def resume(source, output, expected, **settings):
    """Finish an interrupted run; committed files stay untouched and the tree is the uninterrupted one's."""
    before = committed(output)
    result = finish(source, output, expected, **settings)
    after = committed(output)
    assert {n: after[n] for n in before} == before
    lines = (output / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["file"] for line in lines})
    return result


@pytest.fixture(scope="module")
def expected(models):
    return tree(models.quantized("dit"))


def kills(models, expected, tmp_path, n, seed):
    rng = random.Random(seed)
    n_killed = n_partial = k = 0
    while n_killed < n:
        output = tmp_path / f"model{k}"
        k += 1
        for _ in range(rng.choice((1, 1, 2))):
            where = rng.randrange(1, N_EVENTS + 2)
            n_killed += kill_after(start(models.dit, output), where, rng.random() * 0.02)
            if output.exists():
                check_after_kill(output)
                n_partial += 0 < len(committed(output)) < 19
        resume(models.dit, output, expected)
    return n_partial


def test_fifteen_kills_at_random_moments_leave_byte_identical_models(models, expected, tmp_path):
    n_partial = kills(models, expected, tmp_path, 15, seed=0)
    assert n_partial >= 3


@pytest.mark.soak
def test_a_thousand_kills_at_random_moments_leave_byte_identical_models(models, expected, tmp_path):
    assert kills(models, expected, tmp_path, 1000, seed=1) > 300


@pytest.mark.parametrize("delay_s", [0.0, 0.004, 0.012, 0.03])
def test_a_kill_while_the_folder_is_sealed_is_resumed(models, expected, tmp_path, delay_s):
    """Line 84 is the last layer's; what follows is draining, the kept tensors and the seal."""
    kill_after(start(models.dit, tmp_path / "model"), N_EVENTS, delay_s)
    check_after_kill(tmp_path / "model")
    resume(models.dit, tmp_path / "model", expected)


def test_a_kill_while_a_finished_model_is_changed_leaves_a_whole_model_or_none(models, tmp_path):
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    kill_after(start(models.dit, tmp_path / "model", bit_width=8), 20, 0.0)
    check_after_kill(tmp_path / "model")
    finish(models.dit, tmp_path / "model", tree(models.quantized("dit", bit_width=8)), bit_width=8)


class Stopped(Exception):
    """Raised by a listener."""


def stop_after(n_layers):
    """Return a listener that breaks a run after some layers."""

    def listen(event):
        if isinstance(event, LayerFinished) and event.index == n_layers:
            raise Stopped

    return listen


def test_a_finished_folder_run_again_reuses_everything_and_changes_no_file(models, tmp_path):
    first = ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "model").iterdir()}
    second = ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    assert (first.reused, second.reused) == (0, 32)
    assert second.layers == first.layers
    changed = {p.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert changed <= {"run.json", "events.jsonl", "journal.jsonl", ".lock"}


def test_a_changed_override_redoes_only_its_layer(models, tmp_path):
    layer = "transformer_blocks.1.ff.net.2.weight"
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    before = committed(output)
    settings = {"layer_bit_widths": {layer: 8}}
    result = ArrowQuantV2(DiffusionQuantConfig(**settings)).quantize_diffusion_model(models.dit, output)
    assert result.reused == 31
    assert {r.name: r.bit_width for r in result.layers}[layer] == 8
    after = committed(output)
    assert {n for n in after if after[n] != before.get(n)} == {n for n in after if "1_ff_net_2" in n}
    assert tree(output) == tree(models.quantized("dit", **settings))


def test_a_method_ordered_for_one_layer_redoes_only_that(models, tmp_path):
    layer = "transformer_blocks.1.ff.net.2.weight"
    output = tmp_path / "model"
    first = ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    settings = {"layer_methods": {layer: "mse"}}
    result = ArrowQuantV2(DiffusionQuantConfig(**settings)).quantize_diffusion_model(models.dit, output)
    assert result.reused == 31
    before, after = ({r.name: r for r in made.layers}[layer] for made in (first, result))
    assert (before.method, after.method, after.bit_width) == ("uls", "mse", 4)
    assert after.nbytes <= before.nbytes, "a grid of its own stores no more"
    assert tree(output) == tree(models.quantized("dit", **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"modality": "audio"},
        {"method": "rtn"},
        {"group_size": 32},
        {"gain_correction": False},
        {"min_accuracy": 0.9},
        {"seed": 5},
    ],
)
def test_an_output_redone_with_other_settings_equals_a_fresh_one(models, tmp_path, settings):
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    ArrowQuantV2(DiffusionQuantConfig(**settings)).quantize_diffusion_model(models.dit, tmp_path / "model")
    assert tree(tmp_path / "model") == tree(models.quantized("dit", **settings))


def test_an_output_redone_from_the_same_tensors_in_other_files_equals_a_fresh_one(tmp_path):
    """Names of the source's shards stand in the manifest, for the way back."""
    one = write_checkpoint(tmp_path / "one" / "m", dit_tensors(n_blocks=1))
    two = write_checkpoint(tmp_path / "two" / "m", dit_tensors(n_blocks=1), n_shards=2)
    ArrowQuantV2().quantize_diffusion_model(one, tmp_path / "model")
    ArrowQuantV2().quantize_diffusion_model(two, tmp_path / "model")
    ArrowQuantV2().quantize_diffusion_model(two, tmp_path / "fresh")
    assert tree(tmp_path / "model") == tree(tmp_path / "fresh")


def test_changed_weights_are_redone_and_others_are_not(tmp_path):
    tensors = dit_tensors(n_blocks=1)
    source = write_checkpoint(tmp_path / "source", tensors)
    ArrowQuantV2().quantize_diffusion_model(source, tmp_path / "model")
    name = "transformer_blocks.0.attn1.to_v.weight"
    tensors[name] = tensors[name] * 2
    changed = write_checkpoint(tmp_path / "changed" / "source", tensors)
    result = ArrowQuantV2().quantize_diffusion_model(changed, tmp_path / "model")
    assert result.reused == len(tensors) - 1
    ArrowQuantV2().quantize_diffusion_model(changed, tmp_path / "fresh")
    assert tree(tmp_path / "model") == tree(tmp_path / "fresh")


def test_a_committed_file_that_was_damaged_or_removed_is_redone(models, expected, tmp_path):
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    first, second, *_ = sorted(output.glob("0*.parquet"))
    first.unlink()
    raw = bytearray(second.read_bytes())
    raw[500] ^= 1
    second.write_bytes(raw)
    result = ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    assert result.reused == 30
    assert tree(output) == expected


def test_a_run_that_breaks_after_its_first_change_leaves_no_manifest(models, tmp_path):
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    with pytest.raises(Stopped):
        ArrowQuantV2(DiffusionQuantConfig(bit_width=8)).quantize_diffusion_model(
            models.dit, output, on_event=stop_after(31)
        )
    assert not (output / "manifest.json").exists()
    finish(models.dit, output, tree(models.quantized("dit", bit_width=8)), bit_width=8)


def test_a_run_that_breaks_before_any_change_leaves_the_finished_model_whole(models, tmp_path):
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    with pytest.raises(Stopped):
        ArrowQuantV2().quantize_diffusion_model(models.dit, output, on_event=stop_after(31))
    assert open_quantized(output, "full").verify() == 32


def test_a_seal_that_fails_half_way_leaves_a_whole_model_or_none(models, tmp_path):
    """Other settings, equal data: only the text files change, and one of them cannot be written."""
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    (output / "run.json").unlink()
    (output / "run.json").mkdir()
    with pytest.raises(OutputError, match=r"run\.json"):
        ArrowQuantV2(DiffusionQuantConfig(seed=5)).quantize_diffusion_model(models.dit, output)
    if (output / "manifest.json").exists():
        open_quantized(output, "full").verify()
    (output / "run.json").rmdir()
    resume(models.dit, output, tree(models.quantized("dit", seed=5)), seed=5)


def test_stale_temporary_files_are_removed(models, expected, tmp_path):
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    (output / f".tmp-{uuid.uuid4().hex}").write_bytes(b"x")
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    assert tree(output) == expected


def test_files_of_the_user_in_the_folder_survive_a_run(models, expected, tmp_path):
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    own = ("my_eval.parquet", ".tmp-notes.txt", "sub/.tmp-mine")
    for name in own:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_bytes(b"mine")
    (output / ".tmp-folder").mkdir()
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    assert all((output / name).read_bytes() == b"mine" for name in own)
    assert (output / ".tmp-folder").is_dir()
    assert {name: data for name, data in tree(output).items() if name in expected} == expected


def test_a_torn_journal_line_costs_one_layer_and_a_damaged_one_is_an_error(models, expected, tmp_path):
    output = tmp_path / "model"
    ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    (output / "manifest.json").unlink()
    raw = (output / "journal.jsonl").read_bytes()
    lines = raw.splitlines(keepends=True)
    (output / "journal.jsonl").write_bytes(b"".join(lines[:10]) + lines[10][:100])
    result = ArrowQuantV2().quantize_diffusion_model(models.dit, output)
    assert result.reused == 10
    assert tree(output) == expected
    (output / "journal.jsonl").write_bytes(lines[0] + b"\0" * 50 + b"\n" + lines[1])
    with pytest.raises(OutputError, match="line 2"):
        ArrowQuantV2().quantize_diffusion_model(models.dit, output)


@pytest.fixture
def keyboard():
    """The interrupt of an interactive shell; a job in a shell's background is started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
def test_an_interrupt_from_the_keyboard_is_resumable(models, expected, tmp_path):
    def interrupt(event):
        if isinstance(event, LayerFinished) and event.index == 15:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model", on_event=interrupt)
    last = json.loads((tmp_path / "model" / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "run_cancelled"
    resume(models.dit, tmp_path / "model", expected)


@pytest.mark.parametrize("call", ["fsync", "replace", "ftruncate", "unlink", "mkdir"])
def test_a_system_call_that_fails_at_any_time_is_an_output_error_and_the_next_run_finishes(
    models, tmp_path, monkeypatch, call
):
    """Fail the N-th call for every N until a run gets through."""
    working = getattr(os, call)
    count = 0

    def failing(*arguments, **options):
        nonlocal count
        count += 1
        if count == n:
            raise OSError(errno.EIO, "Input/output error")
        return working(*arguments, **options)

    for n in range(1, 200):
        count, output = 0, tmp_path / f"model{n}"
        monkeypatch.setattr(os, call, failing)
        try:
            ArrowQuantV2().quantize_diffusion_model(models.mixed, output)
        except OutputError as error:
            assert "Input/output error" in str(error)  # noqa: PT017 - the run that gets through raises nothing
        monkeypatch.setattr(os, call, working)
        if count < n:
            break
        finish(models.mixed, output, tree(models.quantized("mixed")))
    assert n < 200
