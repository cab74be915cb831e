"""A figure together with its still twin: viewers with scripts show the first, all others the second."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import plotly.io

from arrowquant_nb.ui.style import CONFIG

__all__ = ["PLOTLY_MIME", "Picture", "figure_html"]

PLOTLY_MIME = "application/vnd.plotly.v1+json"


def figure_html(figure: Mapping[str, Any], still: str, *, with_script: bool) -> str:
    """Return a figure given as JSON ("data" and "layout") as a part of a page; one on each page brings the script."""
    drawn = {"data": figure["data"], "layout": figure["layout"]}
    live = plotly.io.to_html(drawn, config=dict(CONFIG), full_html=False, include_plotlyjs=with_script, validate=False)
    # Without scripts the place of the live figure would stay blank.
    hidden = "<style>.aq-live { display: none }</style>"
    return f'<div class="aq-live">{live}</div><noscript>{still}{hidden}</noscript>'


@dataclass(frozen=True, eq=False)
class Picture:
    """What a notebook cell returns for a figure.

    GitHub, printed pages and mail show the SVG; JupyterLab and VS Code the interactive figure. No script library
    is stored in the notebook.
    """

    figure: go.Figure
    svg: str
    words: str
    """One sentence for readers that see neither."""

    def html(self, *, with_script: bool) -> str:
        """Return the live figure with the still one for readers without scripts; plotly's script where it is asked."""
        return figure_html(json.loads(self.figure.to_json()), self.svg, with_script=with_script)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        figure = json.loads(self.figure.to_json())
        return {
            PLOTLY_MIME: {"data": figure["data"], "layout": figure["layout"], "config": dict(CONFIG)},
            "image/svg+xml": self.svg,
            "text/plain": self.words,
        }
