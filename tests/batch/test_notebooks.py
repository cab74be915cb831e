"""The notebooks: clean as committed, checked before they start, and telling what they were made from when done."""

import ast
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from arrowquant_nb import batch
from arrowquant_nb.batch.parameters import parse_parameters, read_parameters
from arrowquant_nb.cli import main
from arrowquant_nb.errors import ConfigurationError, ModelNotFoundError, OutputError, QuantizationError

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUANTIZE = FOLDER / "02_quantize.ipynb"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_committed_notebook_is_a_clean_story(path):
    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    assert document.metadata.kernelspec.name == "python3"
    shown_as_app = {"voila": {"template": "arrowquant"}} if path.name == "03_studio.ipynb" else {}
    known = ("kernelspec", "language_info")
    assert {key: value for key, value in document.metadata.items() if key not in known} == shown_as_app
    assert all(key in document.metadata for key in known)
    for cell in document.cells:
        if cell.cell_type != "code":
            continue
        assert not cell.outputs
        assert cell.execution_count is None
        parameters = "parameters" in cell.metadata.get("tags", ())  # one cell must list them all
        assert len(cell.source.splitlines()) <= (16 if parameters else 12)
        tree = ast.parse(cell.source)
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in ast.walk(tree))


def test_the_packaged_notebook_is_found_by_name():
    assert batch.packaged_notebook().name == "02_quantize.ipynb"
    assert json.loads(batch.packaged_notebook().read_text()) == json.loads(QUANTIZE.read_text())
    with pytest.raises(ConfigurationError, match="02_quantize"):
        batch.packaged_notebook("absent")


def test_every_parameter_has_a_type_and_a_comment():
    parameters = read_parameters(QUANTIZE)
    assert {"model", "output", "profile", "bit_width", "group_size", "method", "config_yaml", "seed"} <= set(parameters)
    assert all(parameter.types and parameter.help for parameter in parameters.values())
    assert parameters["model"].default == "digits-dit"
    assert parameters["bit_width"].types == ("int", "none")


def test_papermill_reads_the_same_parameters():
    import papermill

    found = papermill.inspect_notebook(str(QUANTIZE))
    ours = read_parameters(QUANTIZE)
    assert set(found) == set(ours)
    assert all(found[name]["help"] == parameter.help for name, parameter in ours.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([("bitwidth", "4")], "02_quantize.ipynb has no parameter 'bitwidth'. Did you mean \"bit_width\"?"),
        ([("zzzzz", "4")], "It has: model, output"),
        ([("bit_width", "four")], "parameter bit_width = 'four' is refused; it must be int or none"),
        ([("bit_width", "4.5")], "parameter bit_width = 4.5 is refused"),
        ([("n_samples", "none")], "parameter n_samples = None is refused; it must be int"),
        ([("min_accuracy", "high")], "it must be float or none"),
        ([("seed", "1"), ("seed", "2")], "'seed' is given twice"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_starts(given, said, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        parse_parameters(QUANTIZE, given)
    assert said in str(caught.value)
    options = [text for name, value in given for text in ("-p", name, value)]
    done = CliRunner().invoke(main, ["run", str(tmp_path / "out.ipynb"), *options])
    assert (done.exit_code, said in done.stderr) == (1, True)
    assert not list(tmp_path.iterdir())


def test_texts_become_the_declared_types():
    given = [("bit_width", "8"), ("min_accuracy", "1"), ("profile", "none"), ("model", "8"), ("seed", "null")]
    assert parse_parameters(QUANTIZE, given) == {
        "bit_width": 8, "min_accuracy": 1, "profile": None, "model": "8", "seed": None,
    }  # fmt: skip


def test_wrong_types_from_python_are_refused_too(tmp_path):
    for values in ({"bit_width": "8"}, {"bit_width": True}, {"nosuch": 1}):
        with pytest.raises(ConfigurationError, match="parameter"):
            batch.run_notebook(QUANTIZE, tmp_path / "out.ipynb", values)


def notebook_of(path, *cells):
    document = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    document.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    document.cells[0].metadata.tags = ["parameters"]
    nbformat.write(document, path)
    return path


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("x = 1", "line 1 is not `name: type = literal"),
        ("x: int = f()", "the parameters cell cannot be read"),
        ("x: complex = 1", "type 'complex' is not one of"),
        ("x: int =", "the parameters cell cannot be read"),
    ],
)
def test_a_parameters_cell_of_another_form_is_refused(cell, said, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        read_parameters(notebook_of(tmp_path / "n.ipynb", cell))
    assert said in str(caught.value)


def test_what_is_no_notebook_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="there is no notebook here"):
        read_parameters(tmp_path / "absent.ipynb")
    damaged = ('{"cells": 3}', '{"cells": [3]}', '{"cells": [{"cell_type": "code", "metadata": 3, "source": ""}]}')
    for text in ("", "{}", "[]", "[" * 100_000, *damaged):
        (tmp_path / "x.ipynb").write_text(text)
        with pytest.raises(ConfigurationError, match="not a notebook"):
            read_parameters(tmp_path / "x.ipynb")
    (tmp_path / "x.ipynb").write_text('{"cells": []}')
    with pytest.raises(ConfigurationError, match="no cell is tagged"):
        read_parameters(tmp_path / "x.ipynb")


def test_a_notebook_is_not_written_over_itself(tmp_path):
    copy = tmp_path / "copy.ipynb"
    shutil.copy(QUANTIZE, copy)
    before = copy.read_bytes()
    with pytest.raises(OutputError, match="is the notebook itself"):
        batch.run_notebook(copy, copy)
    with pytest.raises(ConfigurationError, match="add the ending"):
        batch.run_notebook(copy, tmp_path / "out")
    assert copy.read_bytes() == before


@pytest.mark.parametrize("metadata", [{}, {"kernelspec": {"name": "python3", "display_name": "Python 3"}}, None, 3])
def test_a_users_own_notebook_is_not_overwritten(tmp_path, metadata):
    mine = tmp_path / "mine.ipynb"
    mine.write_text(json.dumps({"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    before = mine.read_bytes()
    done = CliRunner().invoke(main, ["run", str(mine)])
    assert done.exit_code == 1
    assert "was not made by a run" in done.stderr
    assert "choose another name" in done.stderr
    assert mine.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.ipynb"]


@pytest.mark.parametrize("content", ["", "notes", "[]", None])
def test_whatever_else_lies_there_is_not_overwritten(tmp_path, content):
    place = tmp_path / "out.ipynb"
    place.mkdir() if content is None else place.write_text(content)
    with pytest.raises(OutputError, match=r"was not made by a run.*choose another name"):
        batch.run_notebook(QUANTIZE, place)
    assert place.is_dir() if content is None else place.read_text() == content


def test_a_users_own_page_is_not_overwritten(tmp_path):
    (tmp_path / "out.html").write_text("mine")
    notebook = notebook_of(tmp_path / "n.ipynb", "x: int = 1  # help")
    with pytest.raises(OutputError, match=r"out\.html: exists without.*choose another name"):
        batch.run_notebook(notebook, tmp_path / "out.ipynb", html=True)
    assert not (tmp_path / "out.ipynb").exists()
    batch.run_notebook(notebook, tmp_path / "out.ipynb")  # writes no page, so none is in the way
    assert (tmp_path / "out.html").read_text() == "mine"


def test_what_a_run_made_is_replaced_by_the_next(tmp_path):
    notebook = notebook_of(tmp_path / "n.ipynb", "x: int = 1  # help", "print('x is', x)")
    for x in (1, 2):
        batch.run_notebook(notebook, tmp_path / "out.ipynb", {"x": x}, html=True)
        for name in ("out.ipynb", "out.html"):
            assert f"x is {x}" in (tmp_path / name).read_text()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["x" * 300 + ".ipynb", "nul\0.ipynb", "file/below.ipynb"])
def test_impossible_paths_are_errors_of_ours(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="ipynb"):
        batch.run_notebook(QUANTIZE, tmp_path / name)
    with pytest.raises((ConfigurationError, ModelNotFoundError), match="ipynb"):
        batch.run_notebook(tmp_path / name, tmp_path / "out.ipynb")


def test_an_impossible_model_folder_makes_a_notebook_without_a_model(tmp_path):
    notebook = notebook_of(tmp_path / "n.ipynb", 'output: str = "out"  # help')
    assert batch.run_notebook(notebook, tmp_path / "out.ipynb", {"output": "x" * 300}).model is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    values = {"output": str(folder / "model"), "n_samples": 2, "bit_width": 8}
    options = [text for name, value in values.items() for text in ("-p", name, str(value))]
    done = CliRunner().invoke(main, ["run", str(folder / "out.ipynb"), *options, "--html", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), folder


def outputs_of(path):
    """Return the data of each cell's outputs by the cell's source."""
    cells = nbformat.read(path, as_version=4).cells
    return {cell.source: [output.get("data", {}) for output in cell.get("outputs", [])] for cell in cells}


def test_the_quantize_notebook_runs_from_the_command_line(finished):
    places, folder = finished
    assert places == {
        "notebook": str(folder / "out.ipynb"), "html": str(folder / "out.html"), "model": str(folder / "model"),
    }  # fmt: skip
    assert (folder / "model" / "manifest.json").is_file()
    shown = outputs_of(folder / "out.ipynb")
    grid = next(data for source, data in shown.items() if source.startswith("sample_grid("))
    for (data,) in (shown["layer_quality(result)"], grid):
        assert {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"} == set(data)
    run = next(data for source, data in shown.items() if source.startswith("result ="))
    assert "100 %" in run[0]["text/html"]
    table = shown["comparison"][0]["text/html"]
    for row in ("original", "INT8 (cloud)", "INT4 (local)", "INT2 (edge)", "INT2 (every layer)", "INT8 (this run)"):
        assert row in table


def test_the_notebook_tells_what_it_was_made_from(finished):
    _, folder = finished
    about = json.loads((folder / "out.ipynb").read_text())["metadata"]
    record = json.loads((folder / "model" / "run.json").read_text())
    assert about["arrowquant"] == record
    assert record["model"].endswith("digits-dit")
    assert record["sources"]["bit_width"] == "argument"
    assert about["papermill"]["input_path"] == "02_quantize.ipynb"
    assert about["papermill"]["output_path"] == "out.ipynb"


def test_the_page_needs_no_network_and_no_scripts(finished):
    _, folder = finished
    page = (folder / "out.html").read_text()
    # One copy of plotly's script, nothing loaded from elsewhere, a still picture for each figure.
    assert page.count("<noscript><svg") == 2
    assert page.count("plotly.js v") == 1
    assert not [tag for tag in page.split("<script")[1:] if " src=" in tag.split(">")[0]]
    assert "<link" not in page.split("<body")[0]
    assert len(page) < 7_000_000


def test_a_saved_notebook_is_small_and_names_no_folder_of_this_machine(finished):
    _, folder = finished
    text = (folder / "out.ipynb").read_text()
    assert len(text) < 1_000_000
    assert str(Path.home()) not in text.replace(str(folder), "")
    assert str(FOLDER.parent) not in text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("bit_width", "3", "bit_width = 3 is refused; it must be 2, 4 or 8."), ("model", "nosuch", "nosuch")],
)
def test_a_failed_run_exits_with_a_message_that_names_it(tmp_path, name, value, said):
    done = CliRunner().invoke(
        main, ["run", str(tmp_path / "out.ipynb"), "-p", name, value, "-p", "output", str(tmp_path / "m")]
    )
    assert done.exit_code == 1
    assert said in done.stderr
    assert str(tmp_path / "out.ipynb") in done.stderr
    assert not (tmp_path / "m").exists()
    # How far it came can be read in the notebook.
    assert said in (tmp_path / "out.ipynb").read_text()


def test_another_source_for_the_same_folder_needs_to_be_asked_for(finished, models, tmp_path):
    values = {"model": str(models.dit), "output": str(tmp_path / "model"), "n_samples": 2}
    shutil.copytree(finished[1] / "model", tmp_path / "model")
    with pytest.raises(QuantizationError, match="overwrite"):
        batch.run_notebook(QUANTIZE, tmp_path / "out.ipynb", values)
    assert json.loads((tmp_path / "model" / "run.json").read_text())["model"].endswith("digits-dit")
    batch.run_notebook(QUANTIZE, tmp_path / "out.ipynb", values | {"overwrite": True})
    assert json.loads((tmp_path / "model" / "run.json").read_text())["model"] == str(models.dit)
    # The executed notebook is passed on: it names the model, not the folder it lay in.
    assert json.loads((tmp_path / "out.ipynb").read_text())["metadata"]["arrowquant"]["model"] == models.dit.name


def test_pictures_start_from_the_seed_of_the_settings(finished, tmp_path):
    (tmp_path / "seed.yaml").write_text("seed: 5\nbit_width: 8\ncalibration_samples: 4\n")
    values = {"config_yaml": str(tmp_path / "seed.yaml"), "output": str(tmp_path / "m"), "n_samples": 2}
    batch.run_notebook(QUANTIZE, tmp_path / "out.ipynb", values)
    assert "2 samples, seed 5;" in (tmp_path / "out.ipynb").read_text()
    assert "2 samples, seed 0;" in (finished[1] / "out.ipynb").read_text()


def test_a_dying_kernel_is_an_error_not_a_hang(tmp_path):
    notebook = notebook_of(tmp_path / "n.ipynb", "x: int = 1  # help", "import os; os._exit(3)")
    with pytest.raises(QuantizationError, match="kernel"):
        batch.run_notebook(notebook, tmp_path / "out.ipynb")


def test_an_unwritable_output_is_an_output_error(tmp_path):
    notebook = notebook_of(tmp_path / "n.ipynb", "x: int = 1  # help")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        batch.run_notebook(notebook, tmp_path / "file" / "out.ipynb")


def test_the_time_aware_notebook_shows_the_drift_and_what_grouping_buys(tmp_path):
    values = {"output": str(tmp_path / "model"), "n_samples": 2, "n_groups": 3}
    batch.run_notebook(FOLDER / "04_time_aware.ipynb", tmp_path / "out.ipynb", values)
    cells = [c for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if c.cell_type == "code"]
    shown = ["".join(str(o.get("data", {}).get("text/plain", "")) for o in cell.get("outputs", ())) for cell in cells]
    assert any("8-bit inputs: " in text for text in shown)
    assert any("Inputs of " in text and "over one" in text for text in shown)
    (table,) = (text for text in shown if text.startswith("Network SQNR"))
    measured = dict(part.split(": ") for part in table.removeprefix("Network SQNR: ").removesuffix(".").split("; "))
    gain = {bits: [float(measured[f"{bits} bits, {way}"].split()[0]) for way in WAYS] for bits in (8, 4)}
    assert gain[8][1] > gain[8][0] + 2.5  # the target for groups over one static grid
    assert gain[4][3] > gain[4][2] > gain[4][1] > gain[4][0]


WAYS = ("one static grid", "3 timestep groups", "3 groups, channels evened out", "a scale per token")


QUALITY = FOLDER / "05_quality.ipynb"


def test_the_quality_notebook_shows_the_results_that_come_with_it(tmp_path):
    finished = batch.run_notebook(QUALITY, tmp_path / "05_quality.ipynb")
    text = Path(finished.notebook).read_text(encoding="utf-8")
    for part in json.loads(QUALITY.with_suffix(".json").read_text(encoding="utf-8")).values():
        assert str(part["about"].get("date", "")) in text
    assert "Q4_K" in text
    assert "arrowquant_nb: gptq k g32" in text


def test_the_quality_notebook_measures_a_part_live(tmp_path):
    finished = batch.run_notebook(QUALITY, tmp_path / "05_quality.ipynb", {"results": "live", "size": 256})
    document = nbformat.read(finished.notebook, as_version=4)
    shown = " ".join(str(output) for cell in document.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "uls k g32 hadamard" in shown
    assert "No targets without peers and models." in shown
