"""The text that the masked language models are trained on: what comes with Python itself, and the parts held out.

It reads the standard library of the running interpreter; another Python version gives other text. It knows no model.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SKIPPED: Final = ("site-packages", "test", "tests", "encodings", "pydoc_data", "lib2to3", "__pycache__")
"""Folders of the library that are left out: others' packages, tests, and tables rather than prose or programs."""
HELD_OUT_TOPICS: Final = {
    "calibration": ("calls", "context-managers", "exceptions", "raise", "truth", "with"),
    "evaluation": ("booleans", "import", "naming", "objects"),
}
HELD_OUT_MODULES: Final = {
    "calibration": ("colorsys.py", "fnmatch.py", "sched.py", "stat.py"),
    "evaluation": ("bisect.py", "textwrap.py"),
}


@dataclass(frozen=True)
class Corpus:
    """Text for training and two parts that share nothing with it."""

    train: str
    calibration: str
    """Held out, for measuring activations."""
    evaluation: str
    """Held out, for figures."""


def prose() -> Corpus:
    """Return English prose: the language reference of `pydoc_data.topics`, docstrings, Python's licence.

    Whole topics are held out. Some topics quote others, so every paragraph of a held-out topic is struck out of the
    training text wherever it stands.
    """
    from pydoc_data.topics import topics  # noqa: PLC0415  half a megabyte that only training needs

    held_out = {part: "\n".join(topics[name] for name in names) for part, names in HELD_OUT_TOPICS.items()}
    struck = {_normal(paragraph) for text in held_out.values() for paragraph in _paragraphs(text)}
    names = sorted(topics.keys() - {name for names in HELD_OUT_TOPICS.values() for name in names})
    texts = [*(topics[name] for name in names), *_docstrings(), licence().read_text("utf-8")]
    return Corpus(_without(texts, struck), held_out["calibration"], held_out["evaluation"])


def code() -> Corpus:
    """Return Python programs: the modules of the standard library; whole modules are held out."""
    library = _library()
    held_out = {
        part: "\n".join((library / name).read_text("utf-8") for name in names)
        for part, names in HELD_OUT_MODULES.items()
    }
    missing = {library / name for names in HELD_OUT_MODULES.values() for name in names}
    texts = (path.read_text("utf-8", errors="replace") for path in _modules() if path not in missing)
    return Corpus("\n".join(texts), held_out["calibration"], held_out["evaluation"])


def licence() -> Path:
    """Return the file with the licence of the text."""
    return _library() / "LICENSE.txt"


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _modules() -> list[Path]:
    library = _library()
    return [path for path in sorted(library.rglob("*.py")) if not set(path.relative_to(library).parts) & set(SKIPPED)]


def _docstrings() -> Iterator[str]:
    """Yield the docstrings of the library's modules, classes and functions, each text once."""
    seen = set()
    for path in _modules():
        tree = ast.parse(path.read_text("utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = inspect.cleandoc(ast.get_docstring(node) or "")
                if text and text not in seen:
                    seen.add(text)
                    yield text


def _paragraphs(text: str) -> list[str]:
    return text.split("\n\n")


def _normal(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _without(texts: Iterable[str], struck: set[str]) -> str:
    """Join `texts`, leaving out the paragraphs whose words are those of one of `struck`."""
    kept = (paragraph for text in texts for paragraph in _paragraphs(text) if _normal(paragraph) not in struck)
    return "\n\n".join(kept)
