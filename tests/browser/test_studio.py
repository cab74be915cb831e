"""The studio in a real browser: a reader presses Run, watches, cancels, looks closer, changes a layer, turns it dark.

Assertions are on what the page holds, never on times; a screenshot is kept of every stage.
"""

import json
import re
from pathlib import Path

import nbformat
import pytest
from made_up_run import run_events

pytestmark = pytest.mark.browser

APP = "document.querySelector('.aq')"
# Pairs of texts in the figure that lie over each other.
OVERLAPS = """() => {
    const texts = [...document.querySelectorAll('.aq .js-plotly-plot text')].filter(e => e.textContent.trim());
    const boxes = texts.map(e => [e.textContent, e.getBoundingClientRect()]);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([_, q]) =>
        Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 &&
        Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4).map(([b]) => [a, b]));
}"""
# Dots of the list of the worst, in the first panel of the figure.
DOTS = ".aq .js-plotly-plot g.subplot.x4y .scatterlayer path.point"
CONTRAST = Path(__file__).parent / "contrast.js"
TRACES = ".aq .js-plotly-plot g.subplot.x4y .scatterlayer .trace"


def button(page, text):
    return page.locator(".aq button:visible", has_text=re.compile(rf"^\s*{re.escape(text)}\s*$"))


def after(page, label, tag="input"):
    """Return the first control that follows a label."""
    return page.locator(f"xpath=//*[contains(@class,'aq')]//*[contains(text(),'{label}')]/following::{tag}[1]").first


def wait_for_words(page, words):
    page.wait_for_function(f"words => {APP}.innerText.includes(words)", arg=words)


def words_of(page):
    return page.locator(".aq").first.inner_text()


def set_number(page, label, value):
    box = after(page, label)
    box.fill(value)
    box.press("Tab")


def layer_names(page):
    """Return the texts of the figure that name layers, from top to bottom."""
    texts = page.locator(".aq .js-plotly-plot .textpoint text")
    return [texts.nth(i) for i in range(texts.count()) if re.match(r"b\d+\.", texts.nth(i).text_content() or "")]


def click_middle(page, mark):
    """Click where a mark of the figure is: the figure's own layer for the pointer lies above it."""
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".aq .hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()


def tab_to(page, name, *, back=False):
    """Press Tab until the control of this name has the focus; the name is a button's text, or a field's label."""
    said = """() => {
        const e = document.activeElement, box = e.closest('.widget-inline-hbox, .aq-row');
        return [e.innerText, e.title, box && box.querySelector('label') && box.querySelector('label').innerText];
    }"""
    for _ in range(120):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        text, _, label = page.evaluate(said)
        if name in ((text or "").strip(), (label or "").strip()):
            return
    pytest.fail(f"Tab never reaches {name!r}")


def press(page, name, *, back=False):
    tab_to(page, name, back=back)
    page.keyboard.press("Enter")


def too_faint(page):
    """Return the texts of the app whose contrast to their ground is below 4.5 to 1."""
    return page.evaluate(CONTRAST.read_text())


def quick_calibration(page):
    set_number(page, "Calibration samples", "4")
    wait_for_words(page, "(4 trajectories")


def run_all_cells(page, address):
    page.goto(address)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")
    page.locator(".jp-CodeCell").first.wait_for()
    page.locator("text=/Python 3.*Idle/").wait_for()  # before it, "Run All" asks for a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    button(page, "Run").wait_for()


def run_to_the_end(page):
    page.locator(".aq button.aq-run").click()
    wait_for_words(page, "Finished")
    page.wait_for_selector(DOTS, state="attached")


def assert_one_live_figure(page):
    assert page.locator(".aq .jupyter-widget-tab, .aq .widget-tab").count() == 0
    assert page.locator(".aq .js-plotly-plot").count() == 1
    assert page.locator(DOTS).count() >= 20
    assert "Share" not in page.locator(".aq .modebar").inner_html()
    assert page.locator(".aq .modebar .plotlyjsicon").count() == 0


def ink(page):
    """Return the lightness, 0 to 1, of the words in the figure."""
    style = f"getComputedStyle({APP}.querySelector('.js-plotly-plot .x4tick text')).fill"
    return sum(map(int, re.findall(r"\d+", page.evaluate(style))[:3])) / 765


def test_voila_is_a_working_app(page, server, studio_notebook, shoot):
    url, served = server
    page.goto(f"{url}/voila/render/{studio_notebook.relative_to(served)}")
    button(page, "Run").wait_for()
    shoot("voila-1-first-paint")
    assert button(page, "Run").is_enabled()

    set_number(page, "Quality floor", "1.2")
    wait_for_words(page, "Run is off")
    assert not button(page, "Run").is_enabled()
    assert "must be" in words_of(page)
    refused = after(page, "Quality floor")
    assert refused.evaluate("e => getComputedStyle(e).outline") == "rgb(213, 94, 0) solid 2px", (
        "the field is marked too"
    )
    shoot("voila-2-refused-value")
    set_number(page, "Quality floor", "0.98")
    page.wait_for_function(f"!{APP}.innerText.includes('Run is off')")

    button(page, "Run").click()
    button(page, "Cancel").click()
    wait_for_words(page, "Cancelled ")
    assert re.search(r"Cancelled (after \d+ of 28 layers|before the first layer)", words_of(page))
    shoot("voila-3-cancelled")
    button(page, "Show settings").click()
    quick_calibration(page)
    assert too_faint(page) == []

    # From here on without a pointer.
    press(page, page.locator(".aq button.aq-run").inner_text().strip())
    wait_for_words(page, "Finished")
    page.wait_for_selector(DOTS, state="attached")
    wait_for_words(page, "rank 1 of 28")
    assert_one_live_figure(page)
    shoot("voila-4-finished")
    page.evaluate("document.documentElement.style.filter = 'grayscale(1)'")
    shoot("voila-4-in-grey")
    page.evaluate("document.documentElement.style.filter = ''")
    tab_to(page, "Find")
    focus = page.evaluate("getComputedStyle(document.activeElement).outline")
    assert focus.endswith("solid 2px"), "where the keyboard is can be seen"
    page.keyboard.type("b2.ff.net.0")
    press(page, "Open")
    wait_for_words(page, "transformer_blocks.2.ff.net.0.proj: ")
    press(page, "Re-quantize this layer")
    wait_for_words(page, "Changed by you (1)")
    page.wait_for_function(f"!{APP}.innerText.includes('Working...')")
    press(page, "Save report", back=True)
    wait_for_words(page, "Report saved")
    shoot("voila-5-by-keyboard")
    assert list(served.glob("**/*-report.html"))

    page.set_viewport_size({"width": 380, "height": 1000})
    page.wait_for_function("document.querySelector('.aq .main-svg').getBoundingClientRect().width < 380")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shoot("voila-6-narrow")


def test_jupyterlab_shows_why_a_layer_hurts_and_changes_it(page, server, studio_notebook, shoot):
    url, served = server
    run_all_cells(page, f"{url}/lab/tree/{studio_notebook.relative_to(served)}?reset")
    quick_calibration(page)
    shoot("lab-1-first-paint")
    run_to_the_end(page)
    assert_one_live_figure(page)
    shoot("lab-2-finished")

    wait_for_words(page, "rank 1 of 28")  # the worst opens by itself, in a figure that has room for it
    second = layer_names(page)[1].text_content()
    button(page, "better >").click()
    wait_for_words(page, "rank 2 of 28")
    assert second.partition(".")[2] in words_of(page)
    click_middle(page, layer_names(page)[2])
    wait_for_words(page, "rank 3 of 28")
    click_middle(page, page.locator(TRACES).nth(-2).locator("path.point").nth(4))  # the references come last
    wait_for_words(page, "rank 5 of 28")
    shoot("lab-3-layer")
    before = page.locator(DOTS).count()
    after(page, "Change this layer", "select").select_option(label="INT8")
    button(page, "Re-quantize this layer").click()
    wait_for_words(page, "Changed by you (1)")
    page.wait_for_function(f"!{APP}.innerText.includes('Working...')")
    assert page.locator(DOTS).count() == before
    shoot("lab-4-overridden")

    bright = ink(page)
    after(page, "Theme", "select").select_option(label="Dark")
    page.wait_for_selector(".aq.aq-dark")
    words = f"{APP}.querySelector('.js-plotly-plot .x4tick text')"
    page.wait_for_function(f"{words} && getComputedStyle({words}).fill.startsWith('rgb(232')")
    assert bright < 0.3
    assert ink(page) > 0.7
    assert too_faint(page) == []
    shoot("lab-5-dark")
    button(page, "Table").click()
    page.wait_for_selector(".aq table")
    assert "transformer_blocks" in words_of(page)

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator(".lm-Menu-item:visible", has_text="Restart Kernel").first.click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    wait_for_words(page, "The kernel has ended or was restarted")
    assert "run this cell again" in words_of(page)
    shoot("lab-6-kernel-gone")


def test_a_page_that_is_loaded_again_in_mid_run_follows_the_run(page, server, studio_notebook, shoot):
    url, served = server
    address = f"{url}/lab/tree/{studio_notebook.relative_to(served)}"
    run_all_cells(page, f"{address}?reset")
    set_number(page, "Calibration samples", "120")
    wait_for_words(page, "(120 trajectories")
    page.locator(".aq button.aq-run").click()
    wait_for_words(page, "Running: ")
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_role("menuitem", name=re.compile(r"^Save Notebook(?! As)")).click()
    while "widget-view" not in studio_notebook.read_text():
        page.wait_for_timeout(100)
    page.goto(address)
    page.locator(".aq").first.wait_for()
    wait_for_words(page, "digits-dit-int4")
    shoot("lab-7-loaded-again")
    wait_for_words(page, "Finished")
    page.wait_for_selector(DOTS, state="attached")
    assert_one_live_figure(page)


def test_an_app_that_is_loaded_again_in_mid_run_finds_the_run(page, server, studio_notebook, shoot):
    """Voila gives each page a kernel, and ends the one of the page that went: the run stops resumably."""
    url, served = server
    page.goto(f"{url}/voila/render/{studio_notebook.relative_to(served)}")
    set_number(page, "Calibration samples", "200")
    wait_for_words(page, "(200 trajectories")
    page.locator(".aq button.aq-run").click()
    wait_for_words(page, "% of calibration")
    page.reload()
    button(page, "Show it with its settings").click()
    wait_for_words(page, "Cancelled before the first layer was done. Run begins it again.")
    shoot("voila-7-loaded-again")
    assert after(page, "Calibration samples").input_value() == "200"
    page.locator(".aq button.aq-run:enabled").click()
    wait_for_words(page, "% of calibration")


def test_a_thousand_layers_fit_the_page(page, server, tmp_path, shoot):
    url, served = server
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e.to_dict()) + "\n" for e in run_events(1000)))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(f"import arrowquant_nb as aq\naq.dashboard({str(tmp_path)!r})")],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, served / "thousand.ipynb")
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.goto(f"{url}/voila/render/thousand.ipynb?template=arrowquant")
    page.wait_for_selector(DOTS, state="attached")
    assert page.locator(TRACES).nth(-2).locator("path.point").count() == 20
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(OVERLAPS) == []
    shoot("thousand-layers")
    after(page, "Theme", "select").select_option(label="Dark")
    page.wait_for_selector(".aq.aq-dark")
    page.wait_for_function(f"getComputedStyle({APP}.querySelector('.x4tick text')).fill.startsWith('rgb(232')")
    assert too_faint(page) == []
    shoot("thousand-layers-dark")
