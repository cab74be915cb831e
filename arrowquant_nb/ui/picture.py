"""A figure together with its still twin: viewers with scripts show the first, all others the second."""

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from arrowquant_nb.ui.style import CONFIG

__all__ = ["PLOTLY_MIME", "Picture"]

PLOTLY_MIME = "application/vnd.plotly.v1+json"


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

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        figure = json.loads(self.figure.to_json())
        return {
            PLOTLY_MIME: {"data": figure["data"], "layout": figure["layout"], "config": dict(CONFIG)},
            "image/svg+xml": self.svg,
            "text/plain": self.words,
        }
