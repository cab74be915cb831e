"""Characters as tokens: printable ASCII, the newline and three special ones, numbered as in tokenizer.json.

It maps text to ids and back. It knows nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPECIAL: Final = ("[PAD]", "[UNK]", "[MASK]")
CHARACTERS: Final = "\n" + "".join(map(chr, range(32, 127)))
TOKENS: Final = (*SPECIAL, *CHARACTERS)
UNKNOWN: Final = SPECIAL.index("[UNK]")
MASK: Final = SPECIAL.index("[MASK]")
N_SPECIAL: Final = len(SPECIAL)

TYPOGRAPHIC: Final = {
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...",
    "\u00a0": " ", "\t": "    ",
}  # fmt: skip
"""Marks of printers and typists, and what stands for them here."""

_PLAIN: Final = str.maketrans(TYPOGRAPHIC)
_IDS: Final = {token: i for i, token in enumerate(TOKENS)}


def encode(text: str) -> NDArray[np.int64]:
    r"""Return one id per character, int64 (characters,); typographic marks become ASCII, other strangers `[UNK]`.

    Examples
    --------
    >>> encode("a\n~é").tolist()
    [69, 3, 98, 1]

    """
    return np.array([_IDS.get(character, UNKNOWN) for character in text.translate(_PLAIN)], dtype=np.int64)


def decode(ids: NDArray[np.integer], stand_in: str = "?") -> str:
    r"""Return the text of `ids`, with `stand_in` for each special token.

    Examples
    --------
    >>> decode(encode("if x:\n"))
    'if x:\n'

    """
    return "".join(stand_in if i < N_SPECIAL else TOKENS[i] for i in np.asarray(ids).ravel().tolist())
