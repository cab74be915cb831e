"""The output folder: where it may be, who may write it, and what a full disk does to it."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, OutputError, open_quantized
from arrowquant_nb.events import LayerFinished, RunStarted
from arrowquant_nb.storage.output import data_file_name
from tests.conftest import dit_tensors, tree, write_checkpoint

LOOK_ALIKES = [
    "a.b.weight",
    "a_b.weight",
    "A.b.weight",
    "a/b.weight",
    "a b.weight",
    "\u0430.b.weight",
    "../../a.weight",
    "a\0.weight",
    "a\n.weight",
    "...",
    "",
    "é.weight",
    "e\u0301.weight",
    "x" * 10_000 + ".weight",
    "x" * 10_000 + "_weight",
    "con",
    "-rf",
    "~",
]


def quantize(source, output, **arguments):
    return ArrowQuantV2().quantize_diffusion_model(source, output, **arguments)


# -- names -----------------------------------------------------------------------------------------------------------


def test_file_names_are_numbered_slugs_with_the_hash_of_the_name():
    assert re.fullmatch(r"00007-a_b_weight-[0-9a-f]{8}\.parquet", data_file_name(7, "a.b.weight"))
    assert data_file_name(7, "a.b") == data_file_name(7, "a.b")


def test_names_that_look_alike_get_different_files_even_where_case_does_not_count():
    names = {data_file_name(0, n).lower() for n in LOOK_ALIKES}
    assert len(names) == len(LOOK_ALIKES)
    assert all(re.fullmatch(r"[0-9A-Za-z_.-]{1,100}", n) for n in names)


def test_hostile_tensor_names_are_data_from_end_to_end(tmp_path):
    weight = dit_tensors()["transformer_blocks.0.attn1.to_q.weight"]
    tensors = {name: (weight * (k + 1)) for k, name in enumerate(LOOK_ALIKES)}
    source = write_checkpoint(tmp_path / "source", tensors)
    result = quantize(source, tmp_path / "in" / "model")
    with open_quantized(tmp_path / "in" / "model", "full") as model:
        assert set(model) == set(LOOK_ALIKES)
        assert sum(not t.kept for t in model.values()) >= 10
        for k, name in enumerate(LOOK_ALIKES):
            assert abs(float(abs(model.dequantize(name)).max()) / (k + 1) / float(abs(weight).max()) - 1) < 0.1
    assert ArrowQuantV2().validate_quality(source, tmp_path / "in" / "model").passed
    assert "\0" not in str(result)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "source"]


# -- places ----------------------------------------------------------------------------------------------------------


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("where", [".", "out", "a/b"])
def test_an_output_inside_the_source_is_refused_and_nothing_is_written(tmp_path, where):
    source = write_checkpoint(tmp_path / "source", dit_tensors(n_blocks=1))
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="inside"):
        quantize(source, source / where)
    assert snapshot(tmp_path) == before


def test_an_output_inside_the_source_by_a_link_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "source", dit_tensors(n_blocks=1))
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match="inside"):
        quantize(source, tmp_path / "link" / "out")


def test_a_source_inside_the_output_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "out" / "source", dit_tensors(n_blocks=1))
    with pytest.raises(OutputError, match="inside"):
        quantize(source, tmp_path / "out")
    file = source / "diffusion_pytorch_model.safetensors"
    with pytest.raises(OutputError, match="inside"):
        ArrowQuantV2(DiffusionQuantConfig(modality="image")).quantize_diffusion_model(file, source)


def test_an_output_that_is_a_file_is_refused(models, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="file"):
        quantize(models.dit, tmp_path / "out")
    with pytest.raises(OutputError):
        quantize(models.dit, tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_of_someone_else_is_refused_and_left_alone(models, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="not empty"):
        quantize(models.dit, tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_an_empty_folder_and_a_path_that_is_not_there_yet_are_fine(models, tmp_path):
    (tmp_path / "empty").mkdir()
    quantize(models.mixed, tmp_path / "empty")
    quantize(models.mixed, tmp_path / "a" / "b c" / "é")
    assert tree(tmp_path / "empty") == tree(tmp_path / "a" / "b c" / "é")


def test_a_relative_output_path_works(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quantize(models.mixed, "out")
    assert tree(tmp_path / "out") == tree(models.quantized("mixed"))


# -- one writer ------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from arrowquant_nb import ArrowQuantV2
def wait(event):
    if event.kind == "run_started":
        print("locked", flush=True)
        sys.stdin.readline()
ArrowQuantV2().quantize_diffusion_model(sys.argv[1], sys.argv[2], on_event=wait)
"""


def test_a_second_process_gets_an_error_and_the_first_one_finishes(models, tmp_path):
    arguments = [sys.executable, "-c", HOLDER, str(models.dit), str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(OutputError, match="another run"):
            quantize(models.dit, tmp_path / "out")
        holder.communicate("go\n")
    assert holder.returncode == 0
    assert tree(tmp_path / "out") == tree(models.quantized("dit"))


def test_the_lock_of_a_killed_process_does_not_stay(models, tmp_path):
    arguments = [sys.executable, "-c", HOLDER, str(models.dit), str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        holder.kill()
    quantize(models.dit, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(models.quantized("dit"))


def test_a_second_thread_of_the_same_process_gets_an_error(models, tmp_path):
    inside, leave = threading.Event(), threading.Event()

    def wait(event):
        if isinstance(event, RunStarted):
            inside.set()
            leave.wait(60)

    first = threading.Thread(target=quantize, args=(models.mixed, tmp_path / "out"), kwargs={"on_event": wait})
    first.start()
    assert inside.wait(60)
    with pytest.raises(OutputError, match="another run"):
        quantize(models.mixed, tmp_path / "out")
    leave.set()
    first.join(60)
    assert tree(tmp_path / "out") == tree(models.quantized("mixed"))


# -- full disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.4 MB, or a skip where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() or not mount or not umount:
        pytest.skip("mounting a small tmpfs needs root")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1400k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run([umount, "-l", folder], check=True)


def test_too_little_space_is_refused_before_anything_is_written(models, small_disk):
    (small_disk / "filler").write_bytes(b"x" * 1_000_000)
    with pytest.raises(OutputError, match="free space"):
        quantize(models.dit, small_disk / "out")
    assert not list((small_disk / "out").glob("*.parquet"))


def test_a_disk_that_fills_up_leaves_committed_layers_and_the_next_run_finishes(models, small_disk):
    def fill(event):
        if isinstance(event, LayerFinished) and event.index == 14:
            with (small_disk / "filler").open("wb", buffering=0) as stream:
                try:
                    while stream.write(b"x" * 4096):
                        pass
                except OSError:
                    pass

    with pytest.raises(OutputError, match="disk is full"):
        quantize(models.dit, small_disk / "out", on_event=fill)
    assert not (small_disk / "out" / "manifest.json").exists()
    assert not list((small_disk / "out").glob(".tmp-*"))
    (small_disk / "filler").unlink()
    commits = [json.loads(line)["file"] for line in (small_disk / "out" / "journal.jsonl").read_text().splitlines()]
    assert 1 <= len(commits) < 19
    before = {n: (small_disk / "out" / n).stat().st_mtime_ns for n in commits}
    result = quantize(models.dit, small_disk / "out")
    assert result.reused == len(commits)
    assert {n: (small_disk / "out" / n).stat().st_mtime_ns for n in commits} == before
    assert tree(small_disk / "out") == tree(models.quantized("dit"))


LIMITED = """
import resource, sys
from arrowquant_nb import ArrowQuantV2, OutputError
import arrowquant_nb.api
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    ArrowQuantV2().quantize_diffusion_model(sys.argv[1], sys.argv[2])
except OutputError as error:
    print(f"OutputError: {error}")
"""


@pytest.mark.parametrize("limit", [10, 1_000, 14_000, 60_000, 100_000])
def test_a_file_size_limit_is_an_output_error_and_the_next_run_finishes(models, tmp_path, limit):
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", LIMITED, str(models.dit), str(out), str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("OutputError: ")
    assert "limit" in done.stdout
    assert not (out / "manifest.json").exists()
    assert not list(out.glob(".tmp-*"))
    journal = out / "journal.jsonl"
    commits = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    assert all((out / c["file"]).stat().st_size == c["nbytes"] for c in commits)
    if limit == 100_000:
        assert len(commits) > 5
    result = quantize(models.dit, out)
    assert result.reused == len(commits)
    assert tree(out) == tree(models.quantized("dit"))


def test_a_read_only_file_system_is_an_output_error(models, small_disk):
    remount = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, check=False)
    if remount.returncode:
        pytest.skip("remounting read-only is not allowed here")
    with pytest.raises(OutputError, match="read-only"):
        quantize(models.dit, small_disk / "out")


def test_a_folder_without_write_permission_is_an_output_error(models, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="permission"):
        quantize(models.dit, tmp_path / "out")


# -- what stands inside ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dit", "sharded"])
def test_container_overhead_is_at_most_six_kilobytes_per_tensor(models, name):
    """All files of the folder but the tensor data: Parquet framing, statistics, manifest, card, journal, events."""
    folder = models.quantized(name)
    with open_quantized(folder) as model:
        payload = sum(t.nbytes for t in model.values())
        stored = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        assert stored - payload <= 6_000 * len(model)
