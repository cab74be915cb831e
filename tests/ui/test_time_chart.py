"""Figures of drifting inputs and of what grouping buys: both twins say the same, and only what is there."""

import json
from xml.etree import ElementTree as ET

import pytest

from arrowquant_nb import ConfigurationError, ModelNotFoundError, open_quantized
from arrowquant_nb.activation_comparison import ActivationComparison, RoundedRun, compare_activations
from arrowquant_nb.ui import figures
from arrowquant_nb.ui.time_chart import InputDrift, drift_of, input_drift_figure, input_drift_svg

GRIDS = ((100, 500, -2.0, 3.0), (500, 901, -4.5, 9.0))
DRIFT = InputDrift("blocks.<0>.weight", (100, 500, 900), (-1.0, -2.0, -4.0), (2.0, 3.0, 8.0), GRIDS, 2.5)
MEASURED = (("one <grid>", 8, 30.0), ("groups", 8, 34.5), ("one <grid>", 4, 6.0), ("groups", 4, 9.0))
RUNS = ActivationComparison("digits-dit", 4, 0, 50.0, tuple(RoundedRun(*values) for values in MEASURED))


def test_the_drift_is_drawn_with_every_group_and_noise_on_the_left():
    figure = json.loads(input_drift_figure(DRIFT).to_json())
    band, grids = figure["data"]
    assert band["y"] == [2.0, 3.0, 8.0, -4.0, -2.0, -1.0]
    assert {2.0, 8.0} < set(band["y"])
    assert set(grids["y"]) == {-2.0, 3.0, -4.5, 9.0}
    assert figure["layout"]["xaxis"]["autorange"] == "reversed"
    assert "2 grids, 2.5 dB over one" in figure["layout"]["title"]["text"]
    svg = ET.fromstring(input_drift_svg(DRIFT))  # names are escaped
    assert sum(p.get("stroke-dasharray") is not None for p in svg.iter("{http://www.w3.org/2000/svg}path")) == 2


def test_a_layer_with_one_grid_says_so():
    one = InputDrift("a", (5,), (0.0,), (0.0,), ((5, 6, 0.0, 0.0),), 0.1)
    assert one.title == "Inputs of a over time: 1 grid"
    ET.fromstring(input_drift_svg(one))  # a constant input has no height


def test_grouping_is_a_bar_for_each_way_and_width():
    picture = figures.activation_grouping(RUNS)
    bars = json.loads(picture.figure.to_json())["data"]
    assert [bar["x"] for bar in bars] == [[30.0, 34.5], [6.0, 9.0]]
    svg = ET.fromstring(picture.svg)
    words = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "one <grid>, 4 bits" in words
    assert "34.5 dB" in words
    assert "8 bits, groups: 34.5 dB" in picture.words


def test_the_table_has_a_column_for_each_width():
    assert RUNS.bit_widths == (8, 4)
    assert RUNS.of_width(4) == {"one <grid>": 6.0, "groups": 9.0}
    lines = str(RUNS).splitlines()
    assert lines[0].endswith("with float inputs 50.0 dB")
    assert lines[-1].split() == ["groups", "34.5", "dB", "9.0", "dB"]
    assert "one &lt;grid&gt;" in RUNS._repr_html_()


def test_models_without_grids_are_refused(models):
    with open_quantized(models.quantized("dit")) as model:
        for layer in (None, "absent.weight"):
            with pytest.raises(ConfigurationError, match="no input has a stored grid"):
                drift_of(model, layer)
    with pytest.raises(ModelNotFoundError, match="there is no bundled sample 'x'"):
        compare_activations("x")
