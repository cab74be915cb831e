"""Which libraries the backend needs, and from which version they call it as it expects. Imports none of them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NEEDED", "unfit"]

NEEDED: Final = {"torch": (2, 4), "diffusers": (0, 39), "transformers": (5, 0), "accelerate": (1, 0)}
"""The least major and minor version: diffusers names the files it loads since 0.39 (`maybe_update_loaded_keys`),
transformers since 5.0 (`checkpoint_files`); without them quantized layers stay empty."""


def unfit(installed: Callable[[str], str | None] | None = None) -> str:
    """Say what is missing or too old, and what to do; "" where all fits.

    Parameters
    ----------
    installed
        Returns the version of a library by its name, None of one that is not there; default: of this environment.

    """
    found = {name: (installed or _installed)(name) for name in NEEDED}
    missing = [name for name, has in found.items() if has is None]
    if missing:
        return f"needs {', '.join(missing)}, not installed here: pip install 'arrowquant_nb[diffusers]'"
    old = [name for name, has in found.items() if has and _release(has) < NEEDED[name]]
    if old:
        wanted = ", ".join(f"{name} {'.'.join(map(str, NEEDED[name]))} or newer" for name in old)
        has = ", ".join(f"{name} {found[name]}" for name in old)
        return f"needs {wanted}, here is {has}: pip install -U {' '.join(old)}"
    return ""


def _installed(name: str) -> str | None:
    if find_spec(name) is None:
        return None
    try:
        return version(name)
    except PackageNotFoundError:  # a source tree on the path
        return ""


def _release(text: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
