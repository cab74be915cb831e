"""The report: one file that tells the whole run to a reader without scripts, network or knowledge of this machine."""

import dataclasses
import getpass
import re
import socket
import xml.etree.ElementTree as ET
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import arrowquant_nb as aq
from arrowquant_nb import result_card, samples
from arrowquant_nb.errors import ConfigurationError, ModelNotFoundError, OutputError
from arrowquant_nb.runs.recorded import read_result
from arrowquant_nb.samples import vocabulary
from arrowquant_nb.ui.model_map import model_map_svg, place
from arrowquant_nb.ui.report import report_html
from arrowquant_nb.ui.sample_pair import SamplePair
from arrowquant_nb.ui.text_pair import differences_html

TITLES = [
    "1 Worst layers", "2 Where in the model", "3 Size", "4 Over timesteps", "5 Samples", "6 Layers that fell back",
    "7 All layers", "8 Settings", "9 How to repeat",
]  # fmt: skip


class Still(HTMLParser):
    """What a reader without scripts is given: text, headings, and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.text, self.headings, self.fetched, self._inside = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br", "img"):
            self._inside.append(tag)
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith(("data:", "#")):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._inside or "style" in self._inside:
            return
        self.text.append(data)
        if "h2" in self._inside:
            self.headings.append(data)


def still(page):
    reader = Still()
    reader.feed(page)
    return reader


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A calibrated run of the digits at 2 bits, with a layer that falls back."""
    config = aq.DiffusionQuantConfig.from_profile(
        "edge", calibration_samples=4, num_threads=1, min_output_sqnr_db=20.0
    )  # fmt: skip
    return aq.ArrowQuantV2(config).quantize_diffusion_model("digits-dit", tmp_path_factory.mktemp("report") / "model")


@pytest.fixture(scope="module")
def page(run):
    return report_html(run)


def test_a_report_has_its_nine_sections_and_one_copy_of_the_script(page):
    assert still(page).headings == TITLES
    assert page.count("plotly.js v") == 1
    assert len(page) < 6_000_000


def test_without_scripts_it_gives_verdict_worst_layers_settings_and_command(page, run):
    text = " ".join(still(page).text)
    worst = min((r for r in run.layers if r.action == "quantized"), key=lambda r: r.quality_db)
    assert result_card.verdict(run) in text
    assert f"{worst.name} {worst.quality_db:.1f}" in " ".join(text.split())
    assert "bit_width: 2" in text
    assert "arrowquant quantize digits-dit OUTPUT --profile edge" in text
    assert run.fallback_history
    for name, attempt in run.fallback_history:
        assert name in text
        assert attempt.sentence in text


def test_it_names_no_path_user_or_host_and_fetches_nothing(page, run):
    reader = still(page)
    assert reader.fetched == []
    assert str(Path(run.quantized_path).parent) not in page
    text = " ".join(reader.text)
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)
    assert "default-src 'none'" in page


def test_the_card_in_a_notebook_is_as_discreet(run):
    card = run._repr_html_()
    for part in (
        escape(result_card.verdict(run)),
        "bit_width",
        "arrowquant quantize digits-dit OUTPUT",
        "aq.report(result",
    ):
        assert part in card
    assert str(Path(run.quantized_path).parent) not in card
    assert "\u2588" in card


def test_samples_are_drawn_from_both_models(page):
    drawn = page[page.index("5 Samples") : page.index("6 Layers")]
    assert drawn.count("<g transform") == 16
    assert "original" in drawn


def test_a_report_of_a_folder_is_that_of_its_run(run, tmp_path):
    path = aq.report(run.quantized_path, tmp_path / "r.html")
    text = path.read_text()
    assert still(text).headings == TITLES
    assert result_card.command(read_result(run.quantized_path)) in " ".join(still(text).text)
    assert aq.report(run, path) == path  # an earlier report is replaced


def test_what_is_missing_is_said(run, models):
    gone = dataclasses.replace(run, quantized_path="gone", config={})
    text = " ".join(still(report_html(gone)).text)
    for words in ("folder is not at hand", "They were not recorded", "The settings were not recorded"):
        assert words in text
    text = " ".join(still(report_html(read_result(models.quantized("mixed")))).text)
    assert "this is another one" in text
    assert "No calibration: nothing measured over time." in text


def test_sounds_can_be_played_and_texts_read():
    spectra = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64)).astype(np.float32)
    sound = SamplePair("audio", "INT4, 1.4 MB", spectra, spectra).html()
    assert sound.count('<audio controls src="data:audio/wav;base64,') == 4
    assert sound.count("<svg") == 1
    ids = samples.runnable("docs-mlm").sample(2, 0)
    text = SamplePair("text", "<INT4>", ids, ids).html()
    assert text.count("original") == text.count("&lt;INT4&gt;") == 2
    assert escape(repr(samples.decode(ids[0]))[1:60], quote=False) in text.replace("&#x27;", "'").replace("&quot;", '"')
    assert "<u" not in text
    assert text.count(f"0 of {ids.shape[1]}") == 2


def test_characters_that_differ_are_underlined_in_both_lines():
    first, second = (vocabulary.encode(words) for words in ("if x:", "if yz"))
    text = SamplePair("code", "INT2", first[None], second[None]).html()
    assert ">if <u class='aq-diff'>x:</u><" in text
    assert ">if <u class='aq-diff'>yz</u><" in text
    assert "2 of 5" in text
    assert differences_html("a\n<", "a\t<") == "a<u class='aq-diff'>\\n</u>&lt;"


def test_the_psnr_of_each_picture_stands_under_it():
    original = np.zeros((2, 4, 4), np.float32)
    quantized = original.copy()
    quantized[1] = 0.2
    pair = SamplePair("image", "INT4", original, quantized)
    assert pair.psnr_db == pytest.approx((np.inf, 20.0), abs=1e-4)  # 10 log10(4 / 0.04)
    words = [node.text for node in ET.fromstring(pair.html()).iter("{http://www.w3.org/2000/svg}text")]
    assert words[-3:] == ["PSNR", "exact", "20.0 dB"]


def test_names_from_files_cannot_become_markup(run):
    evil = dataclasses.replace(run.layers[-1], name="<img src=x onerror=alert(1)>\0", reason="<script>")
    hostile = dataclasses.replace(
        run, model="<script>alert(1)</script>", layers=(*run.layers[:-1], evil), warnings=("no /home/ada/c/x.npz <b>",)
    )
    page = report_html(hostile)
    assert "<img" not in page.split("plotly.js v")[0] + page.split("</script>")[-1]
    assert "<script>alert" not in page
    assert "no x.npz &lt;b&gt;" in page


def test_only_a_report_is_overwritten(run, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a report"):
        aq.report(run, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"
    with pytest.raises(ConfigurationError, match="add the ending"):
        aq.report(run, tmp_path / "report")
    with pytest.raises(OutputError, match="cannot be"):
        aq.report(run, tmp_path / "mine.html" / "r.html")
    with pytest.raises(ModelNotFoundError):
        aq.report(tmp_path, tmp_path / "r.html")
    assert not list(tmp_path.glob("*.part"))


def test_a_map_has_a_column_per_block_and_a_row_per_role(run):
    assert model_map_svg(run.layers) == ""  # 28 layers all stand in the list
    template = next(r for r in run.layers if r.action == "quantized")
    layers = [
        dataclasses.replace(template, name=f"blocks.{i}.{role}.weight")
        for i in range(30)
        for role in ("attn.to_q", "ff.net.2")
    ]
    drawn = model_map_svg([*layers, dataclasses.replace(template, name="head.weight", action="kept")])
    assert drawn.count("<rect") == 60
    for words in ("attn.to_q", "ff.net", "outside blocks", "head.weight: kept"):
        assert words in drawn
    assert place("a.12.b.3.weight") == ("a.12", "b")
