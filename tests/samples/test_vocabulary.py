"""Text goes to ids and back; the tokenizer that comes with the models does the same."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_nb import samples
from arrowquant_nb.samples.vocabulary import CHARACTERS, MASK, N_SPECIAL, TOKENS, UNKNOWN, decode, encode


@given(st.text(alphabet=list(CHARACTERS)))
def test_known_characters_come_back(text):
    ids = encode(text)
    assert decode(ids) == text
    assert ids.dtype == np.int64
    assert ((ids >= N_SPECIAL) & (ids < len(TOKENS))).all()


def test_there_are_99_tokens_and_the_special_ones_come_first():
    assert len(set(TOKENS)) == len(TOKENS) == 99
    assert TOKENS[MASK] == "[MASK]"
    assert TOKENS[3:6] == ("\n", " ", "!")


def test_typographic_marks_become_plain_and_strangers_unknown():
    assert decode(encode("\u201cit\u2019s\u201d\u2026\t.")) == '"it\'s"...    .'
    np.testing.assert_array_equal(encode("é\x00"), [UNKNOWN, UNKNOWN])
    assert decode(np.array([MASK, 4, UNKNOWN])) == "? ?"


@pytest.mark.parametrize("name", ["docs-mlm", "stdlib-mlm"])
def test_tokenizer_json_numbers_the_characters_alike(name):
    stored = json.loads((samples.load(name) / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["model"]["vocab"] == {token: i for i, token in enumerate(TOKENS)}


@pytest.mark.torch
@pytest.mark.parametrize("name", ["docs-mlm", "stdlib-mlm"])
def test_transformers_tokenizer_gives_the_same_ids(name):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(samples.load(name))
    text = "def f(x):\n    return \u201ca\u201d\u2026\t[é] #~\n\n"
    assert tokenizer(text)["input_ids"] == encode(text).tolist()
    assert tokenizer.mask_token_id == MASK
    assert tokenizer.decode(encode("if x:  y\n").tolist()) == "if x:  y\n"
