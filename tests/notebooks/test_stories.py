"""Every notebook runs from its first cell to its last, as a reader would run it, without an error.

Those that take parameters are executed by papermill in `tests/batch`; the others here, by nbval, in
one process and an empty folder.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PARAMETERIZED = ("02_quantize.ipynb", "04_time_aware.ipynb", "05_quality.ipynb", "batch_summary.ipynb")
STORIES = sorted(path.name for path in FOLDER.glob("*.ipynb") if path.name not in PARAMETERIZED)
HUNG_S = 300
"""After so long a cell is taken for hung."""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Name of each notebook -> what went wrong in which cell, after one run over all of them."""
    place = tmp_path_factory.mktemp("stories")
    for name in STORIES:
        shutil.copy(FOLDER / name, place)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env",
            f"--nbval-cell-timeout={HUNG_S}", "-c", os.devnull, "--rootdir", str(place), "--junitxml=told.xml",
            "-p", "no:cacheprovider", *STORIES,
        ],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (place / "told.xml").is_file(), done.stdout + done.stderr
    cells = list(ET.parse(place / "told.xml").getroot().iter("testcase"))
    found = {name: [] for name in STORIES}
    for name in STORIES:
        mine = [cell for cell in cells if name.removesuffix(".ipynb") in cell.get("classname")]
        assert mine, f"{name} was not run:\n{done.stdout}"
        for cell in mine:
            found[name] += [f"{cell.get('name')}: {part.text}" for part in cell if part.tag in ("failure", "error")]
    return found


@pytest.mark.parametrize("name", STORIES)
def test_a_notebook_runs_to_its_end(name, told):
    assert not told[name], "\n\n".join(told[name])


def test_the_quickstart_is_five_cells():
    import nbformat

    cells = nbformat.read(FOLDER / "01_quickstart.ipynb", as_version=4).cells
    assert sum(cell.cell_type == "code" for cell in cells) == 5
