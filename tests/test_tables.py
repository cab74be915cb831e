"""Text and HTML tables: alignment, escaping, formats."""

import math
from dataclasses import replace

import pytest

from arrowquant_nb import LayerReport, layer_tables, tables
from arrowquant_nb.layer_reports import AttemptReport


@pytest.mark.parametrize(
    ("value", "shown"), [(math.inf, "exact"), (19.96, "20.0 dB"), (-3.25, "-3.2 dB"), (-math.inf, "-inf dB")]
)
def test_decibels_read_as_decibels_and_infinity_as_exact(value, shown):
    assert tables.decibels(value) == shown


def test_a_text_table_lines_up_under_its_header():
    assert tables.text_table(("name", "n"), [("a", "1"), ("long name", "22")]) == (
        "name       n\n---------  --\na          1\nlong name  22"
    )


def test_control_characters_stay_on_their_line():
    assert tables.text_table(("x",), [("a\nb\x1b[31m\0",)]).splitlines()[2] == r"a\nb\x1b[31m\x00"


def test_html_cells_headers_and_captions_are_escaped():
    page = tables.html_table(("<a>",), [("<b>&\"'",)], "<c>")
    assert "&lt;a&gt;" in page
    assert "&lt;b&gt;&amp;&quot;&#x27;" in page
    assert "&lt;c&gt;" in page
    assert "<b>" not in page


def test_a_very_long_cell_is_shortened_at_its_middle():
    [row] = tables.text_table(("x",), [("a" * 200 + "z" * 200,)]).splitlines()[2:]
    assert len(row) <= 120
    assert row.startswith("aaa")
    assert row.endswith("zzz")
    assert "..." in row


def test_width_counts_read_like_a_sentence(models):
    from arrowquant_nb import ArrowQuantV2

    assert tables.width_counts(ArrowQuantV2().plan(models.dit).rows) == "16 INT4, 2 INT8, 14 kept"


def test_why_a_layer_is_as_it_is_begins_with_what_it_beats():
    sentence = "INT2 gives the layer's output 15.74 dB, at or above the 12 dB asked for; that outweighs a cosine. More."
    attempt = AttemptReport(
        2, "gptq-uls", "k", 0.9, 7.0, 1.0, 0.9, True, 15.74, sentence, compared={"uls": 2.0, "r2q": 20.0, "hqq": 2.0}
    )
    report = LayerReport(
        "w", (1, 4), "float32", "quantized", "linear", "", "", 2, 2, n_weights=4, source_nbytes=16, nbytes=2,
        w_absmax=1.0, attempts=(attempt,),
    )  # fmt: skip
    [row] = layer_tables.layer_rows([report])
    assert row[-1] == "Beats r2q by 10.00 dB; INT2 gives the layer's output 15.74 dB, at or above the 12 dB asked for."
    [plain] = layer_tables.layer_rows([replace(report, attempts=(replace(attempt, compared={}),))])
    assert plain[-1] == sentence
