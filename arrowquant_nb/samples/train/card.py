"""Model cards and the JSON files of a sample's folder: facts of a training run as text.

It formats and writes; the recipes measure.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMMON_PACKAGES = ("torch", "numpy", "safetensors")


def write_card(folder: Path, template: str, facts: Mapping[str, Any], packages: tuple[str, ...]) -> None:
    """Write README.md: `template` filled with `facts`, the size of the folder's weights, and the versions in use."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {importlib.metadata.version(package)}" for package in (*packages, *COMMON_PACKAGES)]
    (weights,) = folder.glob("*.safetensors")
    text = template.format(**facts, megabytes=weights.stat().st_size / 1e6, versions=", ".join(versions))
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_json(path: Path, entries: Mapping[str, Any]) -> None:
    """Write `entries` as indented JSON with a newline at the end."""
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tidy_config(path: Path) -> None:
    """Sort a config that a library wrote, and take out the path of the training machine."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries.pop("_name_or_path", None)
    write_json(path, dict(sorted(entries.items())))
