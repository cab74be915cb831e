"""Runs beside each other: joined by name, told apart by size, quality and settings."""

import dataclasses
import json
import math

import nbformat
import pytest
from made_runs import EIGHT, FOUR, TWO, WASTEFUL, layer, run

from arrowquant_nb.batch import run_notebook
from arrowquant_nb.errors import ConfigurationError, MetadataError, ModelNotFoundError
from arrowquant_nb.run_comparison import NOTEBOOK_KEY, compare_runs, read_run
from arrowquant_nb.runs.recorded import read_result


def test_layers_are_joined_by_name_and_sorted_by_the_size_of_the_change():
    found = compare_runs(FOUR, TWO)
    assert [(c.name, c.words, c.nbytes) for c in found.rows()] == [
        ("c", "-25.6 dB INT4->INT2", -50), ("a", "-9.5 dB INT4->INT2", -50), ("b", "+1.0 dB INT4", 0),
    ]  # fmt: skip
    assert found.not_in_both == ("only",)


def test_the_verdict_says_size_and_quality_in_one_sentence():
    assert compare_runs(FOUR, TWO).verdict == "B is 37% smaller and 11.5 dB worse (median of 3 layers)"
    assert compare_runs(TWO, FOUR).verdict == "B is 59% larger and 11.5 dB better (median of 3 layers)"
    assert compare_runs(FOUR, FOUR).verdict == "B is as large and as good (median of 4 layers)"


@pytest.mark.parametrize(
    ("show", "names"),
    [("All", "cab"), ("Better", "b"), ("Worse", "ca"), ("Bits changed", "ca"), ("Same bits", "b")],
)
def test_rows_are_shown_as_asked(show, names):
    assert "".join(c.name for c in compare_runs(FOUR, TWO).rows(show=show)) == names


def test_rows_are_sorted_and_found_as_asked():
    found = compare_runs(FOUR, TWO)
    assert "".join(c.name for c in found.rows("Worst in B")) == "cab"
    assert "".join(c.name for c in found.rows("Model order")) == "abc"
    assert [c.name for c in found.rows(find="A")] == ["a"]
    assert [c.name for c in found.rows(find="[ab]*", sort="Model order")] == ["a", "b"]
    assert found.rows(find="absent") == []
    for word in ({"sort": "x"}, {"show": "x"}):
        with pytest.raises(ConfigurationError, match="'x' is none of"):
            found.rows(**word)


def test_the_front_holds_the_runs_that_no_other_beats():
    found = compare_runs(FOUR, TWO, EIGHT, WASTEFUL)
    assert [r.letter for r in found.front] == ["B", "A", "C"]
    assert found.pair("A", "C").verdict.startswith("C is 50% larger")
    with pytest.raises(ConfigurationError, match="there is no run 'Z'; there are: A, B, C, D"):
        found.pair("A", "Z")


def test_settings_that_differ_are_told_for_every_run():
    assert compare_runs(FOUR, TWO, FOUR).settings == (
        ("bit_width", (4, 2, 4)), ("enable_spatial", (None, False, None)),
    )  # fmt: skip


def test_outputs_are_compared_only_where_all_runs_measured_them():
    measured = run([layer("a", 24.0, output=30.0), layer("b", 26.0, output=31.0)])
    both = compare_runs(measured, measured)
    assert (both.measure, both.a.quality["a"]) == ("layer-output SQNR", 30.0)
    mixed = compare_runs(measured, FOUR)
    assert (mixed.measure, mixed.a.quality["a"]) == ("weight SQNR", 24.0)


def test_exact_layers_have_words_instead_of_infinite_figures():
    exact = run([layer("a", math.inf), layer("b", 26.0)])
    assert compare_runs(exact, exact).rows()[0].change_db == 0.0
    assert compare_runs(FOUR, exact).rows()[0].words == "now exact INT4"
    assert compare_runs(exact, FOUR).rows()[0].words == "no longer exact INT4"
    json.dumps(compare_runs(FOUR, exact).to_dict())


def test_runs_over_different_models_show_sizes_only():
    other = run([dataclasses.replace(r, name=f"x.{r.name}") for r in FOUR.layers])
    found = compare_runs(FOUR, other)
    assert found.verdict == "These runs share 0 of 4 layer names; showing sizes only."
    assert len(found.not_in_both) == 8


def test_one_run_is_not_enough():
    for runs in ((), (FOUR,)):
        with pytest.raises(ConfigurationError, match=r"Give two or more runs\."):
            compare_runs(*runs)


@pytest.fixture(scope="module")
def executed(models, tmp_path_factory):
    """A notebook whose run is finished already."""
    folder = tmp_path_factory.mktemp("executed")
    document = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    document.cells = [nbformat.v4.new_code_cell('output: str = "m"  # folder', metadata={"tags": ["parameters"]})]
    nbformat.write(document, folder / "in.ipynb")
    model = models.quantized("mixed")
    run_notebook(folder / "in.ipynb", folder / "out.ipynb", {"output": str(model)})
    return folder / "out.ipynb", model


def test_results_folders_and_executed_notebooks_are_the_same_run(executed):
    notebook, model = executed
    result = read_result(model)
    assert read_run(result) is result
    assert read_run(model).layers == read_run(str(model)).layers == read_run(notebook).layers == result.layers
    assert read_run(notebook).quantized_path == model.name
    assert compare_runs(notebook, model, result).verdict.startswith("B is as large and as good")
    # What the metadata says of the result names no folder of this machine.
    about = json.loads(notebook.read_text())["metadata"][NOTEBOOK_KEY]
    assert str(model.parent) not in json.dumps(about)


def test_what_holds_no_run_is_named(tmp_path, executed):
    with pytest.raises(MetadataError, match="holds no result of a run"):
        read_run(executed[0].with_name("in.ipynb"))
    with pytest.raises(ModelNotFoundError, match="there is no notebook"):
        read_run(tmp_path / "absent.ipynb")
    with pytest.raises(ModelNotFoundError, match=r"no manifest\.json"):
        read_run(tmp_path)
    for text in ("", "[]", '{"metadata": []}', '{"metadata": {"arrowquant_result": {"layers": 3}}}', "[" * 100_000):
        (tmp_path / "x.ipynb").write_text(text)
        with pytest.raises(MetadataError, match=r"x\.ipynb"):
            read_run(tmp_path / "x.ipynb")
