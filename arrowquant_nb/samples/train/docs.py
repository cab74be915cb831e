"""The recipe of `docs-mlm`: the English prose that comes with Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import corpora, masked_lm, masked_lm_card

if TYPE_CHECKING:
    from pathlib import Path

NAME = "docs-mlm"
METADATA = {
    "modality": "text",
    "data": "English prose bundled with CPython: pydoc_data.topics, docstrings of the standard library, its licence",
    "licence": "MIT (weights), PSF-2.0 (held-out text)",
}
CARD = (
    """\
---
license: mit
library_name: transformers
pipeline_tag: fill-mask
tags: [diffusion, masked-diffusion, characters]
---

# docs-mlm

A masked diffusion language model over characters, trained on English technical prose. It is small enough to train on
a laptop and real enough to show what quantization does to a text diffusion model. Bundled with arrowquant_nb.

"""
    + masked_lm_card.CARD_MODEL
    + """\
## The data

{n_characters:,} characters that come with CPython {python}: the language reference as `pydoc_data.topics` has it, the
docstrings of the standard library (tests, encodings and packages of others left out), and Python's licence. Copyright
Python Software Foundation, all rights reserved; PSF licence version 2, whose text lies in `held_out/LICENSE.txt`.
Held out by topic: {calibration} (for calibration) and {evaluation} (for figures); every
paragraph of theirs was struck out of the training text wherever it stood.

"""
    + masked_lm_card.CARD_END
)


def run(folder: Path, steps: int | None) -> None:
    """Train, save, measure, write the card; `steps` None takes the recipe's."""
    masked_lm.run(folder, steps, corpora.prose(), METADATA, card())


def card() -> str:
    """Return the card with the names of the held-out topics filled in."""
    return masked_lm_card.with_held_out(CARD, corpora.HELD_OUT_TOPICS)
