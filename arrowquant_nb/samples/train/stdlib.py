"""The recipe of `stdlib-mlm`: the programs of the standard library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import corpora, masked_lm, masked_lm_card

if TYPE_CHECKING:
    from pathlib import Path

NAME = "stdlib-mlm"
METADATA = {
    "modality": "code",
    "data": "the Python sources of the CPython standard library",
    "licence": "MIT (weights), PSF-2.0 (held-out programs)",
}
CARD = (
    """\
---
license: mit
library_name: transformers
pipeline_tag: fill-mask
tags: [diffusion, masked-diffusion, characters]
---

# stdlib-mlm

A masked diffusion language model over characters, trained on Python programs. It is small enough to train on a
laptop and real enough to show what quantization does to a code diffusion model. Bundled with arrowquant_nb.

"""
    + masked_lm_card.CARD_MODEL
    + """\
## The data

{n_characters:,} characters: the modules of the standard library of CPython {python} (tests, encodings, lib2to3 and
packages of others left out). Copyright Python Software Foundation, all rights reserved; PSF licence version 2, whose
text lies in `held_out/LICENSE.txt`. Held out by module: {calibration} (for calibration) and
{evaluation} (for figures).

"""
    + masked_lm_card.CARD_END
)


def run(folder: Path, steps: int | None) -> None:
    """Train, save, measure, write the card; `steps` None takes the recipe's."""
    masked_lm.run(folder, steps, corpora.code(), METADATA, card())


def card() -> str:
    """Return the card with the names of the held-out modules filled in."""
    return masked_lm_card.with_held_out(CARD, corpora.HELD_OUT_MODULES)
