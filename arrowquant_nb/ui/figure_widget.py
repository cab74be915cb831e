"""plotly's figure widget, whose script of five megabytes the page gets once and not with every figure.

plotly sends the script within each figure: making one takes the kernel a tenth of a second, and a page that has not
read it after two seconds gives the figure up for good. Here it travels by itself, as bytes, and a figure names it;
what is painted before the page has read it is kept and caught up with. Importing this loads plotly.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import ipywidgets
import plotly.basewidget
import plotly.graph_objects as go
import traitlets

__all__ = ["FigureScript", "LiveFigure", "figure_code"]

# One promise a page for each version of the script; figures wait for it. `initialize` must not: anywidget gives a
# widget up, updates and all, whose `initialize` takes two seconds.
_SCRIPT: Final = """
const UPDATE = "_py2js_update";
async function plotly(model) {
  const loaded = (globalThis.arrowquantFigures ??= {});
  const script = await model.widget_manager.get_model(model.get("_script").replace("IPY_MODEL_", ""));
  return (loaded[script.get("version")] ??= (async () => {
    const url = URL.createObjectURL(new Blob([script.get("code")], { type: "text/javascript" }));
    try { return (await import(url)).default; } finally { URL.revokeObjectURL(url); }
  })());
}
async function begin(model) {
  const late = [];
  const keep = () => model.get(UPDATE) && late.push(model.get(UPDATE));
  model.on("change:" + UPDATE, keep);
  const made = (await plotly(model))();
  model.off("change:" + UPDATE, keep);
  let now = null;
  const listeners = [];
  made.initialize({ model: {
    get: (name) => (name === UPDATE && now) || model.get(name),
    set: model.set, save_changes: model.save_changes, send: model.send, off: model.off,
    widget_manager: model.widget_manager,
    on: (name, listener) => { if (name === "change:" + UPDATE) listeners.push(listener); model.on(name, listener); },
  } });
  for (now of late) for (const listener of listeners) listener();
  now = null;
  return made;
}
export default () => {
  let begun;
  return {
    initialize({ model }) { begun = begin(model); },
    async render(context) { return (await begun).render(context); },
  };
};
"""


class FigureScript(ipywidgets.Widget):  # type: ignore[misc] # ipywidgets has no stubs
    """What draws figures in a page; made once for the figures that follow each other in one place."""

    code = traitlets.Bytes().tag(sync=True)
    version = traitlets.Unicode(plotly.__version__).tag(sync=True)

    def __init__(self, code: bytes) -> None:
        super().__init__(code=code)


class LiveFigure(go.FigureWidget):  # type: ignore[misc] # plotly has no stubs
    """A `FigureWidget` that finds its script in a `FigureScript`.

    Parameters
    ----------
    script : sent before, and not closed before this.
    data, layout : as for `FigureWidget`.
    """

    _esm = _SCRIPT
    _script = traitlets.Instance(FigureScript).tag(sync=True, **ipywidgets.widget_serialization)

    def __init__(self, script: FigureScript, data: list[dict[str, Any]], layout: dict[str, Any]) -> None:
        self._script = script
        super().__init__(data=data, layout=layout)


@functools.cache
def figure_code() -> bytes:
    """Read plotly's script."""
    return (Path(plotly.basewidget.__file__).parent / "package_data" / "widgetbundle.js").read_bytes()
