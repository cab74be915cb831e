"""Figures say what the reports say, in shapes and words, with nothing that could run or phone home."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import plotly.graph_objects as go
import pytest

from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.layer_reports import AttemptReport, LayerReport
from arrowquant_nb.results import QuantizationResult, Strategy
from arrowquant_nb.ui.figures import layer_quality, sample_grid, sample_grid_figure, sample_grid_svg
from arrowquant_nb.ui.layer_chart import layer_quality_figure, layer_quality_svg, layer_rows, short_name
from arrowquant_nb.ui.progress import progress_markup
from arrowquant_nb.ui.style import INK

SVG = "{http://www.w3.org/2000/svg}"


def attempt(bits, sqnr_db, passed):
    sentence = f"INT{bits} reached {sqnr_db} dB <script>."
    return AttemptReport(bits, "uls", "minimum", 0.99, sqnr_db, 1e-4, 0.98, passed, "not_measured", sentence)


def layer(name, sqnr_db, bits=4, requested=4, attempts=(), action="quantized"):
    return LayerReport(
        name=name, shape=(8, 64), dtype="float16", action=action, role="linear", reason="an ordinary layer",
        rule="bit_width", requested_bit_width=requested, bit_width=bits, method="uls", grid="minimum", group_size=64,
        n_weights=512, source_nbytes=1024, nbytes=288, sqnr_db=sqnr_db, cosine=0.9951, mse=1e-4, gain=1.0, w_absmax=1.0,
        attempts=tuple(attempts) or (attempt(bits, sqnr_db, True),),
    )  # fmt: skip


def result(layers):
    return QuantizationResult(
        quantized_path="out", model="m", compression_ratio=3.0, compression_ratio_quantized=3.5, cosine_similarity=0.99,
        sqnr_db=20.0, model_size_mb=1.0, source_size_mb=3.0, payload_nbytes=10, container_nbytes=1, modality="image",
        modality_reason="said so", strategy=Strategy("gptq", "uls", True, True, "none", "why"), bit_width=4,
        quantization_time_s=1.0, fallback_rate=0.0, reused=0, layers=tuple(layers),
    )  # fmt: skip


FELL_BACK = layer("b.fell", 15.0, bits=4, requested=2, attempts=[attempt(2, 9.0, False), attempt(4, 15.0, True)])
KEPT = layer("d", math.inf, 16, 16, action="kept")
THREE = result([layer("a.good", 22.0), FELL_BACK, layer("c.raised", 46.0, bits=8, requested=8), KEPT])


def test_the_worst_layer_is_on_top():
    assert [row.name for row in layer_rows(THREE.layers)] == ["\u25b2 b.fell", "a.good", "c.raised"]
    figure = layer_quality_figure(THREE)
    assert list(figure.layout.yaxis.ticktext) == ["\u25b2 b.fell", "a.good", "c.raised"]
    # Row 0 is drawn at the top: the axis runs downwards.
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_every_colour_goes_with_a_shape_and_a_word():
    marks = [trace for trace in layer_quality_figure(THREE).data if str(trace.name).startswith("INT")]
    assert {trace.name: trace.marker.symbol for trace in marks} == {"INT4": "circle", "INT8": "square"}
    assert len({trace.marker.color for trace in marks}) == len(marks)


def test_a_missed_gate_is_a_hollow_mark_of_its_own_width():
    hollow = next(trace for trace in layer_quality_figure(THREE).data if trace.name == "hollow: missed its gate")
    assert (list(hollow.x), list(hollow.y), list(hollow.marker.symbol)) == ([9.0], [0], ["triangle-down-open"])
    assert 'fill="none"' in layer_quality_svg(THREE)


def test_the_words_beside_a_row_give_value_width_and_gate():
    assert layer_rows(THREE.layers)[0].words == "15.0 dB  INT4  cosine 0.9951, gate 0.98"


def test_the_hover_tells_why_and_escapes_what_files_bring():
    evil = dataclasses.replace(layer("<img src=x onerror=alert(1)>\x00\n", 10.0), reason="<b>")
    figure = layer_quality_figure(result([evil]))
    assert "INT4 reached 10.0 dB" in figure.data[0].customdata[0]
    for text in (figure.to_json(), layer_quality_svg(result([evil]))):
        assert "<img" not in text
        assert "<script" not in text
        assert "<b>" not in text
    ET.fromstring(layer_quality_svg(result([evil])))


def test_an_exact_layer_is_drawn_at_the_edge_and_named():
    rows = layer_rows([layer("zeros", math.inf), layer("a", 20.0)])
    assert rows[1].words.startswith("exact")
    assert math.isfinite(rows[1].sqnr_db)
    json.loads(layer_quality_figure(result([layer("zeros", math.inf)])).to_json())


def test_a_thousand_layers_stay_readable():
    many = result([layer(f"transformer_blocks.{i}.attn1.to_out.0.weight", 10 + i / 50) for i in range(1000)])
    figure = layer_quality_figure(many)
    assert len(figure.layout.yaxis.ticktext) == 60
    assert "the 60 worst of 1000 layers" in figure.layout.title.text
    assert len(figure.to_json()) < 100_000
    assert len(layer_quality_svg(many)) < 100_000


def test_nothing_quantized_is_drawn_as_an_empty_chart():
    for layers in ([], [layer("d", math.inf, 16, 16, action="kept")]):
        assert "0 layers" in layer_quality_figure(result(layers)).layout.title.text
        ET.fromstring(layer_quality_svg(result(layers)))


@pytest.mark.parametrize("length", [10, 20, 44])
def test_long_names_are_cut_in_the_middle(length):
    name = "begin" + "x" * 100 + "end"
    short = short_name(name, length)
    assert len(short) == length
    assert short.startswith("begi")
    assert short.endswith("end")
    assert short_name("exact", 5) == "exact"


def rows_of(n_rows=3, n=2):
    random = np.random.default_rng(0)
    return {f"row {i}\nline": random.uniform(-1, 1, (n, 8, 8)) for i in range(n_rows)}


def test_grid_pixels_are_the_images_pixels():
    images = rows_of()
    heat = sample_grid_figure(images).data[0]
    grid = np.array([[np.nan if v is None else v for v in line] for line in heat.z], float)
    assert grid.shape == (3 * 9 - 1, 2 * 9 - 1)
    np.testing.assert_allclose(grid[9:17, 9:17], images["row 1\nline"][1], atol=6e-4)
    assert np.isnan(grid[8]).all()
    assert np.isnan(grid[:, 8]).all()
    assert (heat.zmin, heat.zmax, heat.zsmooth) == (-1, 1, None)


def test_grid_rows_run_from_top_to_bottom_with_their_labels():
    figure = sample_grid_figure(rows_of())
    assert list(figure.layout.yaxis.ticktext) == ["row 0<br>line", "row 1<br>line", "row 2<br>line"]
    assert list(figure.layout.yaxis.tickvals) == [3.5, 12.5, 21.5]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    assert figure.layout.yaxis.scaleanchor == "x"


def test_still_grid_paints_black_and_white_where_they_are():
    image = np.full((1, 8, 8), -1.0)
    image[0, 2, 5] = 1.0
    root = ET.fromstring(sample_grid_svg({"a <b>": image}))
    white = [path.get("d") for path in root.iter(f"{SVG}path") if path.get("fill") == "#ffffff"]
    assert white == ["M5 2h1v1h-1z"]
    assert "a <b>" in [text.text for text in root.iter(f"{SVG}text")]


def test_values_out_of_range_and_nan_are_clipped_not_failed():
    image = np.full((1, 8, 8), 7.0)
    image[0, 0, 0] = np.nan
    ET.fromstring(sample_grid_svg({"a": image}))
    json.loads(sample_grid_figure({"a": image}).to_json())


@pytest.mark.parametrize("shapes", [[], [(2, 8)], [(2, 8, 8), (1, 8, 8)], [(0, 8, 8)]])
def test_rows_of_different_shapes_are_refused(shapes):
    images = {str(i): np.zeros(shape) for i, shape in enumerate(shapes)}
    with pytest.raises(ShapeMismatchError, match="rows of one shape"):
        sample_grid_figure(images)


@pytest.mark.parametrize("picture", [layer_quality(THREE), sample_grid(rows_of())])
def test_a_picture_has_a_live_and_a_still_form_and_stores_no_script(picture):
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    ET.fromstring(bundle["image/svg+xml"])
    assert len(json.dumps(bundle)) < 300_000
    live = bundle["application/vnd.plotly.v1+json"]
    assert "sendChartToCloud" in live["layout"]["modebar"]["remove"]
    assert live["config"]["displaylogo"] is False


@pytest.mark.parametrize("figure", [layer_quality_figure(THREE), sample_grid_figure(rows_of())])
def test_figures_read_on_light_and_dark_pages(figure):
    assert isinstance(figure, go.Figure)
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    for page in ("#ffffff", "#111111"):
        assert contrast(INK, page) > 4.1


def contrast(one, other):
    """Return the WCAG 2 contrast ratio."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_progress_says_in_words_what_the_bar_shows():
    markup = progress_markup("<layer>", 0.25)
    assert "25 % &lt;layer&gt;" in markup
    assert "role='status'" in markup
