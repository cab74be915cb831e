"""The repository on Binder: the recipe renders, and what it installs runs the quickstart."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINDER = ROOT / "binder"


def lines(name):
    return [line for line in (BINDER / name).read_text().splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The Dockerfile that repo2docker makes of the repository; nothing is built."""
    place = tmp_path_factory.mktemp("binder") / "repository"
    place.mkdir()
    shutil.copytree(BINDER, place / "binder")
    shutil.copy(ROOT / "constraints.txt", place)
    command = ["--no-build", "--debug", "--user-id", "1000", "--user-name", "jovyan", str(place)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "repo2docker", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_recipe_renders_with_every_file_of_the_folder(recipe):
    for package in lines("apt.txt"):
        assert package in recipe
    for step in ("binder/requirements.txt", "./binder/postBuild", "binder/start"):
        assert step in recipe
    assert lines("runtime.txt") == ["python-3.11"]


def test_the_scripts_can_be_executed_and_start_hands_over(tmp_path):
    assert os.access(BINDER / "postBuild", os.X_OK)
    done = subprocess.run(
        [BINDER / "start", "bash", "-c", "echo $OMP_WAIT_POLICY $OMP_NUM_THREADS"], cwd=tmp_path, text=True,
        env={"PATH": os.environ["PATH"]}, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == "PASSIVE 2\n"


def test_what_binder_installs_is_pinned():
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert lines("requirements.txt")[0] == "-c ../constraints.txt"
    assert {name.lower() for name in lines("requirements.txt")[1:]} <= pinned


@pytest.mark.soak
def test_the_quickstart_runs_in_a_fresh_environment_made_by_the_recipe(tmp_path):
    left_out = shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "__pycache__", ".*_cache", "*.egg-info")
    place = tmp_path / "repository"
    shutil.copytree(ROOT, place, ignore=left_out)
    venv.create(tmp_path / "venv", with_pip=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_C", "PIP_B", "PYTHON", "VIRTUAL", "JUPYTER"))}
    environment = kept | {"PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(*command, cwd=place):
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    run("python", "-m", "pip", "install", "-q", "-r", "binder/requirements.txt")
    assert "'compiled_core': True" in run("binder/postBuild")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    notebook = str(place / "notebooks" / "01_quickstart.ipynb")
    run(str(place / "binder" / "start"), "papermill", "--cwd", ".", notebook, "out.ipynb", cwd=elsewhere)
    assert (elsewhere / "digits-int4" / "manifest.json").is_file()
