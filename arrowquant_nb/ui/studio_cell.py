"""`aq.studio`: one app a cell; running the cell again replaces it, and what it was doing stops resumably."""

from pathlib import Path

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.ui.app import Studio

__all__ = ["studio"]

_LIVE: dict[str, Studio] = {}


def studio(model: str | Path | None = None, config: DiffusionQuantConfig | None = None) -> Studio:
    """Show the app in a cell: form, plan, run, dashboard.

    Parameters
    ----------
    model : a path or the name of a bundled sample; None opens the first sample.
    config : settings to begin with; default the local profile.

    Notes
    -----
    Running a cell again replaces its app: a run that goes on there stops after the piece it is at, resumably.
    """
    cell = _cell()
    old = _LIVE.pop(cell, None)
    if old is not None:
        old.replaced()
    _LIVE[cell] = Studio(model, config)
    return _LIVE[cell]


def _cell() -> str:
    """Return what tells this cell from others, "" where the front end does not say."""
    from IPython import get_ipython  # noqa: PLC0415 - not needed to import the package

    shell = get_ipython()
    parent = getattr(shell, "parent_header", None) or {}
    if shell is not None and hasattr(shell, "get_parent"):
        parent = shell.get_parent() or {}
    return str((parent.get("metadata") or {}).get("cellId", ""))
