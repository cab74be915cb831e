"""A grid of notebooks: read and checked as a whole, then every job by itself, and what is finished left alone."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from filelock import FileLock

from arrowquant_nb.batch import read_summary, run_batch
from arrowquant_nb.batch.job_list import read_jobs
from arrowquant_nb.cli import main
from arrowquant_nb.config.sources import yaml_text
from arrowquant_nb.errors import ConfigurationError, MetadataError, ModelNotFoundError, OutputError

CELLS = (
    (
        'model: str = "m"  # source\noutput: str = "out"  # folder\nbit_width: int = 4  # 2, 4 or 8\n'
        "die: bool = False  # end the kernel"
    ),
    "import os\nif die:\n    os._exit(3)",
    (
        "import arrowquant_nb as aq\nconfig = aq.DiffusionQuantConfig.load(bit_width=bit_width, method='rtn')\n"
        "result = aq.ArrowQuantV2(config).quantize_diffusion_model(model, output)"
    ),
    "print('threads', config.num_threads)",
)


def write_notebook(path, cells=CELLS):
    document = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    document.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    document.cells[0].metadata.tags = ["parameters"]
    nbformat.write(document, path)
    return path


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    return write_notebook(tmp_path_factory.mktemp("notebook") / "small.ipynb")


def jobs_file(path, small, **values):
    path.write_text(yaml_text({"notebook": str(small), **values}))
    return path


def listed(tmp_path, small, **values):
    return read_jobs(jobs_file(tmp_path / "night.yaml", small, **values))


def test_a_grid_is_every_combination_in_its_order_then_the_single_jobs(tmp_path, notebook):
    todo = listed(
        tmp_path, notebook, parameters={"die": False}, grid={"model": ["a/one", "two"], "bit_width": [4, 2]},
        jobs=[{"model": "three"}],
    )  # fmt: skip
    assert [job.name for job in todo.jobs] == [
        "one_bit-width-4", "one_bit-width-2", "two_bit-width-4", "two_bit-width-2", "three",
    ]  # fmt: skip
    assert todo.jobs[1].parameters == {"die": False, "model": "a/one", "bit_width": 2}
    assert (str(todo.output), todo.at_once, todo.makes_models) == (str(tmp_path / "night")[-5:], 2, True)


def test_jobs_of_one_name_are_told_apart_and_names_are_safe(tmp_path, notebook):
    names = [job.name for job in listed(tmp_path, notebook, grid={"model": ["a/m", "b/m", "../..", "x" * 300]}).jobs]
    assert len({name.lower() for name in names}) == 4
    assert all(name.startswith("m-") for name in names[:2])
    assert all(set(name) & {"/", " "} == set() and name not in (".", "..") and len(name) <= 90 for name in names)


def test_the_key_follows_all_that_decides_what_comes_out(tmp_path, notebook, monkeypatch):
    def key(which=notebook, **values):
        return listed(tmp_path, which, **{"grid": {"model": [str(tmp_path / "m")]}, **values}).jobs[0].key

    first = key()
    assert key(at_once=7) == first
    monkeypatch.setenv("ARROW_QUANT_NUM_THREADS", "3")
    assert key() == first
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_text("1")
    with_file = key()
    (tmp_path / "m" / "weights").write_text("12")
    keys = [first, with_file, key(), key(parameters={"bit_width": 2})]
    monkeypatch.setenv("ARROW_QUANT_SEED", "3")
    keys += [key(), key(write_notebook(tmp_path / "other.ipynb", (*CELLS, "1")))]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"grids": {}}, "line 2: unknown key 'grids'. Did you mean \"grid\"?"),
        ({}, "holds no job"),
        ({"grid": {"bitwidth": [4]}}, "small.ipynb has no parameter 'bitwidth'. Did you mean \"bit_width\"?"),
        ({"grid": {"bit_width": [4, "four"]}}, "parameter bit_width = 'four' is refused"),
        ({"grid": {"bit_width": []}}, "'bit_width' has no value"),
        ({"grid": {"bit_width": [4, 4]}}, "jobs 1 and 2 have the same parameters"),
        ({"grid": [4]}, "grid must be a mapping"),
        ({"grid": {"bit_width": list(range(40)), "model": [str(i) for i in range(40)]}}, "more than 1000 jobs"),
        ({"jobs": {"model": "m"}}, "jobs must be a list"),
        ({"jobs": [{"output": "here"}]}, "leave out the parameter 'output'"),
        ({"jobs": [{"model": "m"}], "at_once": 0}, "at_once = 0 is refused"),
        ({"jobs": [{"model": "m"}], "at_once": True}, "at_once = True is refused"),
        ({"jobs": [{"model": "m"}], "output": 3}, "output = 3 is refused"),
        ({"jobs": [{"model": "m"}], "notebook": "03_absent"}, "there is no notebook '03_absent'"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_before_anything_runs(values, said, tmp_path, notebook):
    path = jobs_file(tmp_path / "night.yaml", notebook, **values)
    with pytest.raises(ConfigurationError) as caught:
        read_jobs(path)
    assert said in str(caught.value)
    done = CliRunner().invoke(main, ["batch", str(path), "--output", str(tmp_path / "out")])
    assert (done.exit_code, said in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["jobs: [", "- 1", "jobs: *a", "a: 1\na: 2", "\0"])
def test_unreadable_yaml_is_named(text, tmp_path):
    (tmp_path / "night.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"night\.yaml"):
        read_jobs(tmp_path / "night.yaml")
    with pytest.raises(ConfigurationError, match="there is no settings file"):
        read_jobs(tmp_path / "absent.yaml")


@pytest.fixture(scope="module")
def night(models, notebook, tmp_path_factory):
    """Three jobs, one of which dies, run twice."""
    folder = tmp_path_factory.mktemp("batch")
    values = {"parameters": {"model": str(models.mixed)}, "grid": {"bit_width": [8, 2]}, "jobs": [{"die": True}]}
    path = jobs_file(folder / "night.yaml", notebook, output=str(folder / "night"), **values)
    told = []
    first = run_batch(path, at_once=2, progress_callback=lambda message, fraction: told.append((message, fraction)))
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "night").glob("*/run.ipynb")}
    again = CliRunner().invoke(main, ["batch", str(path), "--json"])
    return first, folder / "night", told, stamps, again


def test_a_dying_job_stops_no_other_and_sets_the_exit_code(night):
    first, folder, told, *_, again = night
    assert {row["job"]: row["state"] for row in first.rows} == {
        "bit-width-8": "finished", "bit-width-2": "finished", "die-True": "failed",
    }  # fmt: skip
    assert not first.passed
    assert "kernel" in first.failures[0]["error"]
    assert [fraction for _, fraction in told] == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert any(message.startswith("die-True: FAILED") for message, _ in told)
    for row in first.rows[:2]:
        assert (folder / row["job"] / "model" / "manifest.json").is_file()
    assert (again.exit_code, json.loads(again.stdout)["passed"]) == (1, False)


def test_the_jobs_share_the_threads(night):
    text = (night[1] / "bit-width-8" / "run.ipynb").read_text()
    given = os.environ.get("ARROW_QUANT_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"threads {given}" in text


def test_finished_jobs_are_skipped_and_failed_ones_tried_again(night):
    _, folder, _, stamps, again = night
    states = {row["job"]: row["state"] for row in json.loads(again.stdout)["jobs"]}
    assert states == {"bit-width-8": "skipped", "bit-width-2": "skipped", "die-True": "failed"}
    renewed = {path.parent.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert renewed <= {"die-True"}
    assert folder.joinpath("die-True", "job.json").is_file()


def test_the_summary_says_what_came_out(night):
    _, folder, *_ = night
    table = pq.read_table(folder / "summary.parquet")
    rows = {row["job"]: row for row in table.to_pylist()}
    assert rows["bit-width-8"]["bit_width"] == 8
    assert rows["bit-width-8"]["weight_sqnr_db"] > rows["bit-width-2"]["weight_sqnr_db"] > 0
    assert rows["bit-width-8"]["size_mb"] > rows["bit-width-2"]["size_mb"]
    assert rows["die-True"]["size_mb"] is None
    summary = read_summary(folder)
    assert [row["job"] for row in summary.rows] == list(rows)
    assert str(summary).startswith("2 of 3 jobs finished, 2 of them finished before; 1 FAILED")
    assert str(summary).splitlines()[4].startswith("die-True")
    assert summary.models == {"mixed": [str(folder / name / "model") for name in ("bit-width-8", "bit-width-2")]}
    page = (folder / "summary.html").read_text()
    assert "1 FAILED" in page
    assert "bit-width-8" in page


def test_what_is_no_summary_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"has no summary\.parquet"):
        read_summary(tmp_path)
    for content in (b"", b"PAR1"):
        (tmp_path / "summary.parquet").write_bytes(content)
        with pytest.raises(MetadataError, match="is not the summary of a batch"):
            read_summary(tmp_path)


def test_one_batch_at_a_time_writes_a_folder(tmp_path, notebook):
    path = jobs_file(tmp_path / "night.yaml", notebook, jobs=[{"model": "m"}])
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".batch.lock"), pytest.raises(OutputError, match="another batch is writing"):
        run_batch(path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run_batch(path, tmp_path / "file" / "out")


def test_an_interrupted_batch_ends_its_jobs_and_says_so(tmp_path):
    slow = write_notebook(tmp_path / "slow.ipynb", ("n: int = 1  # n", "import time; time.sleep(120)"))
    path = jobs_file(tmp_path / "night.yaml", slow, grid={"n": [1, 2, 3]})
    command = [sys.executable, "-m", "arrowquant_nb", "batch", str(path), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "n-1").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "interrupted" in said) == (130, True)
    assert not list((tmp_path / "out").glob("*/job.json"))
