"""A comparison says in a notebook what its rows say: in words, one figure with a still twin, and tables."""

import json
import xml.etree.ElementTree as ET

import ipywidgets as widgets
import pytest
from made_runs import EIGHT, FOUR, TWO, layer, run

import arrowquant_nb as aq
from arrowquant_nb.ui.compare_chart import comparison_figure, dumbbell_svg, front_svg


@pytest.fixture(scope="module")
def three():
    return aq.compare(FOUR, TWO, EIGHT)


def test_the_dumbbells_join_a_and_b_of_each_row(three):
    lines, a, b, words, *_ = comparison_figure(three.data, three.data.rows()).data
    assert list(a.x) == [30.0, 24.0, 26.0]
    assert list(b.x) == [4.4, 14.5, 27.0]
    assert list(lines.x)[:3] == [30.0, 4.4, None]
    assert list(words.text) == ["-25.6 dB INT4-&gt;INT2", "-9.5 dB INT4-&gt;INT2", "+1.0 dB INT4"]
    assert (a.marker.symbol, b.marker.symbol) == ("circle-open", "circle")
    assert len(set(a.marker.color)) == 2  # better and worse, and the words have the sign


def test_the_stairs_go_through_the_runs_worth_shipping(three):
    stairs, points = comparison_figure(three.data, []).data
    assert list(points.x) == [2.0, 1.26, 3.0]
    assert list(points.y) == [25.0, 14.5, 41.0]
    assert list(zip(stairs.x, stairs.y, strict=True))[:5] == [
        (1.26, 14.5), (2.0, 14.5), (2.0, 25.0), (3.0, 25.0), (3.0, 41.0),
    ]  # fmt: skip
    assert list(points.text) == ["A local INT4", "B local INT2", "C local INT8"]


def test_a_single_size_has_a_point_and_no_line():
    twin = aq.compare(FOUR, FOUR)
    assert len(comparison_figure(twin.data, []).data) == 1
    ET.fromstring(front_svg(twin.data))


def test_still_pictures_are_drawn_from_the_same_rows(three):
    still = dumbbell_svg(three.data, three.data.rows())
    ET.fromstring(still)
    assert still.index(">c<") < still.index(">a<") < still.index(">b<")
    assert "-25.6 dB INT4-&gt;INT2" in still
    assert dumbbell_svg(three.data, []) == ""
    assert front_svg(aq.compare(run([]), run([])).data) == ""


def test_a_cell_shows_words_then_the_figure_then_the_tables(three):
    words, picture, twin = three.parts()
    figure = picture._repr_mimebundle_()
    assert "B is 37% smaller and 11.5 dB worse" in words.data
    assert set(figure) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    assert "Settings that differ (2)" in twin.data
    assert "Not in both: 1 tensors" in twin.data
    assert "sendChartToCloud" in json.dumps(figure["application/vnd.plotly.v1+json"]["layout"]["modebar"]["remove"])


def test_text_and_html_hold_the_same_rows(three):
    for text in (str(three), three._repr_html_()):
        for words in ("A local INT4 2.000 MB 25.0 dB", "-25.6 dB", "enable_spatial"):
            assert words in text
    assert "(median of 3 layers)" in repr(three)


def test_names_from_files_cannot_become_markup():
    evil = run([layer("<img src=x onerror=alert(1)>\0", 20.0)])
    shown = aq.compare(evil, run([layer("<img src=x onerror=alert(1)>\0", 10.0)], model_name="<b>"))
    figure = comparison_figure(shown.data, shown.data.rows()).to_json()
    assert "<img" not in shown.html() + figure
    ET.fromstring(dumbbell_svg(shown.data, shown.data.rows()))


def test_the_controls_choose_what_is_shown(three):
    box = three.explore()
    controls = {w.description: w for w in box.children[0].children}
    view = box.children[1]
    assert list(controls) == ["A", "B", "Sort", "Show", "Find"]
    assert isinstance(view, widgets.HTML)
    controls["Show"].value = "Better"
    assert "1 of 1 layers" in view.value
    controls["Show"].value = "All"
    controls["Find"].value = "a"
    assert "1 of 1 layers" in view.value
    controls["B"].value = "C"
    assert "C is 50% larger" in view.value
    assert [w.description for w in aq.compare(FOUR, TWO).explore().children[0].children] == ["Sort", "Show", "Find"]
