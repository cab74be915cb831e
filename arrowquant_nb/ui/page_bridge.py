"""What the page tells the kernel: theme, width, that it has been loaded; what it is asked: to copy a text.

And it says when the kernel is gone.

A few lines of script in an anywidget; they fetch nothing and store nothing. Where the page runs no scripts, the theme
stays light, the width wide, and texts are copied by hand.
"""

from collections.abc import Callable
from typing import Any, Final

import anywidget
import traitlets

__all__ = ["PageBridge"]

# JupyterLab and Voila both set data-jp-theme-light on the body; elsewhere the browser's preference counts.
_SCRIPT: Final = """
function theme() {
  const said = document.body.dataset.jpThemeLight;
  if (said === "true") return "light";
  if (said === "false") return "dark";
  return window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}
function kernelOf(model) {
  const manager = model.widget_manager;
  return manager && manager.kernel;
}
const GONE = "The kernel has ended or was restarted, so this app no longer answers. Every layer that was finished is " +
  "kept: run this cell again (reload the page of an app), and what was cut off is found under Output.";
export default { render({ model, el }) {
  const lost = (_, status) => {
    if (!["dead", "restarting", "autorestarting", "terminating"].includes(status) || el.firstChild) return;
    const words = document.createElement("div");
    words.className = "aq-error";
    words.setAttribute("role", "alert");
    words.textContent = GONE;
    el.appendChild(words);
  };
  const kernel = kernelOf(model);
  if (kernel && kernel.statusChanged) kernel.statusChanged.connect(lost);
  const tell = () => {
    const width = Math.round(el.parentElement ? el.parentElement.getBoundingClientRect().width : 0);
    if (width > 0 && Math.abs(width - model.get("width")) > 8) model.set("width", width);
    model.set("theme", theme());
    model.save_changes();
  };
  const themes = new MutationObserver(tell);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  const sizes = new ResizeObserver(tell);
  sizes.observe(el.parentElement || el);
  const copy = async (message) => {
    if (message.copy === undefined) return;
    try { await navigator.clipboard.writeText(message.copy); model.send({ copied: true }); }
    catch (error) { model.send({ copied: false }); }
  };
  model.on("msg:custom", copy);
  setTimeout(() => { tell(); model.send({ shown: true }); }, 0);
  return () => {
    if (kernel && kernel.statusChanged) kernel.statusChanged.disconnect(lost);
    themes.disconnect(); sizes.disconnect(); model.off("msg:custom", copy);
  };
} };
"""


class PageBridge(anywidget.AnyWidget):
    """An element that is empty while the kernel lives, and whose traits follow the page."""

    _esm = _SCRIPT
    theme = traitlets.Unicode("light").tag(sync=True)
    width = traitlets.Int(0).tag(sync=True)

    def copy_text(self, text: str) -> None:
        """Ask the page to put a text on the clipboard; it answers with a message `{"copied": bool}`."""
        self.send({"copy": text})

    def on_shown(self, callback: Callable[[], None]) -> None:
        """Call `callback()` whenever a page shows this element."""
        self.on_msg(lambda _, content, __: callback() if "shown" in content else None)

    def on_copied(self, callback: Any) -> None:
        """Call `callback(bool)` with each answer."""
        self.on_msg(lambda _, content, __: callback(bool(content.get("copied"))) if "copied" in content else None)
