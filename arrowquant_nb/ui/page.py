"""An executed notebook as one HTML file that needs no network: plotly's script once, and every figure's still twin."""

import re
from pathlib import Path
from typing import Final

import nbformat
from nbconvert import HTMLExporter

from arrowquant_nb.ui.picture import PLOTLY_MIME, figure_html

__all__ = ["notebook_page"]

# What remains of the template's require.js and MathJax when they are not to be fetched.
_EMPTY_SCRIPT: Final = re.compile(r'<script src="">\s*</script>')


def notebook_page(notebook: Path) -> str:
    """Return the notebook as HTML: figures interactive with scripts, still pictures without; nothing is fetched."""
    document = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    n_figures = 0
    for cell in document.cells:
        for output in cell.get("outputs", []):
            bundle = output.get("data", {})
            if PLOTLY_MIME in bundle:
                still = bundle.get("image/svg+xml", "")
                bundle["text/html"] = figure_html(bundle[PLOTLY_MIME], still, with_script=n_figures == 0)
                n_figures += 1
    nowhere = {"require_js_url": "", "mathjax_url": "", "jquery_url": "", "widget_renderer_url": ""}
    exporter = HTMLExporter(**nowhere)  # type: ignore[no-untyped-call]
    page, _ = exporter.from_notebook_node(document, resources={"metadata": {"name": notebook.stem}})
    return _EMPTY_SCRIPT.sub("", str(page))
