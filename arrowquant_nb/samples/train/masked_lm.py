# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""Train a masked diffusion language model over characters: transformers' own `BertForMaskedLM`.

The loss of masked diffusion (Sahoo et al. 2024; Nie et al. 2025, LLaDA): a share t of the characters is masked and
predicted from the rest, t spread evenly over (0, 1]. It knows nothing of where text comes from.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arrowquant_nb.samples import vocabulary
from arrowquant_nb.samples.masked_lm import HELD_OUT, WEIGHTS_FILE
from arrowquant_nb.samples.vocabulary import MASK, SPECIAL, TOKENS

from .card import tidy_config, write_card, write_json
from .corpora import licence
from .descent import descend
from .masked_lm_figures import measure, written

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .corpora import Corpus

LEAST_MASKED = 0.02
"""Least share of masked characters in training."""
CONFIG: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": SPECIAL.index("[PAD]"),
    "initializer_range": 0.05,
}
FIRST_OFFSETS = ((-1, 1, -2, 2), (-1, 1, -3, 3))
"""Characters from a position to the one that each head of the first two layers looks at, before training."""
SHARPNESS = 1.2
"""Factor of the query and key weights that look there; most of a head's weight then falls on that character."""
POSITION_SHARE = 2.0
"""Size of the learned positions against that of the word embeddings, before training."""


@dataclass(frozen=True)
class Recipe:
    """How a masked language model is trained."""

    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 16
    """Windows per step."""
    window: int = 64
    """Characters per window."""
    learning_rate: float = 1.2e-3
    """Peak of AdamW's rate: linear warm-up, then half a cosine to zero."""
    warmup: int = 300
    """Steps of linear warm-up."""
    gentle_steps: int = 800
    """Steps over which the highest share of masked characters rises from 0.2 to 1: with nearly everything masked there
    is nothing to learn but letter frequencies, and a transformer without a local stem stays there for long."""
    weight_decay: float = 0.01
    """AdamW's."""
    ema_decay: float = 0.995
    """Decay per step of the moving average whose weights are saved."""
    seed: int = 0
    """Seed of the initial weights and of every draw in training."""


def new_model() -> Any:
    """Build the untrained model, plain BERT in all but its start: its first heads attend to near neighbours.

    A transformer over characters without a local stem stays for thousands of steps at the letter frequencies, because
    it must find out first which of the learned positions are neighbours. So the learned positions start as sinusoids
    twice as large as the word embeddings (Vaswani et al. 2017), turned by a random rotation, and the query and key
    weights of the first layers such that head h scores highest the position `FIRST_OFFSETS[layer][h]` further on.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM

    model: Any = BertForMaskedLM(BertConfig(**CONFIG))
    embeddings = model.bert.embeddings
    n, width = embeddings.position_embeddings.weight.shape
    turn, _ = torch.linalg.qr(torch.randn(width, width))
    frequencies = 3.0 * torch.exp(torch.arange(width // 2) * (-math.log(1000.0) / (width // 2)))
    angles = torch.arange(n)[:, None] * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1) * math.sqrt(2)
    with torch.no_grad():
        embeddings.position_embeddings.weight.copy_(
            waves @ turn * POSITION_SHARE * embeddings.word_embeddings.weight.std()
        )
        for layer, offsets in zip(model.bert.encoder.layer, FIRST_OFFSETS, strict=False):
            _look_aside(layer.attention.self, offsets, frequencies, turn)
    return model


def _look_aside(attention: Any, offsets: tuple[int, ...], frequencies: torch.Tensor, turn: torch.Tensor) -> None:
    """Let head h of `attention` score highest what stands `offsets[h]` further on.

    Its queries and keys are the fastest of the position waves, the queries' turned on by the offset.
    """
    import torch

    head_width = attention.attention_head_size
    for head, offset in enumerate(offsets):
        rows = slice(head * head_width, (head + 1) * head_width)
        angle = offset * frequencies[: head_width // 2]
        turned = torch.zeros(head_width, head_width)
        even = torch.arange(0, head_width, 2)
        turned[even, even] = turned[even + 1, even + 1] = angle.cos()
        turned[even, even + 1], turned[even + 1, even] = angle.sin(), -angle.sin()
        mixed, _ = torch.linalg.qr(torch.randn(head_width, head_width))
        attention.key.weight[rows] += SHARPNESS * mixed @ turn[:head_width]
        attention.query.weight[rows] += SHARPNESS * mixed @ turned @ turn[:head_width]


def masked_batch(ids: torch.Tensor, recipe: Recipe, highest: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw windows of `ids` (characters,); return them (n, window), what is masked (bool), and its shares (n, 1)."""
    import torch

    n = recipe.batch_size
    starts = torch.randint(len(ids) - recipe.window + 1, (n, 1))
    windows = ids[starts + torch.arange(recipe.window)]
    spread = (torch.rand(1) + torch.arange(n) / n) % 1
    shares = (LEAST_MASKED + spread * (highest - LEAST_MASKED))[:, None]
    masked = torch.rand(windows.shape) < shares
    masked[torch.arange(n), torch.randint(recipe.window, (n,))] = True  # a window without any would teach nothing
    return windows, masked, shares


def train(ids: torch.Tensor, recipe: Recipe) -> tuple[Any, float]:
    """Train from scratch on `ids`, int64 (characters,); return the averaged model and the last mean of the loss."""
    import torch
    from torch.nn import functional

    model = new_model()

    def loss_of(step: int) -> torch.Tensor:
        windows, masked, _ = masked_batch(ids, recipe, min(1.0, 0.2 + 0.8 * step / recipe.gentle_steps))
        hidden = model.bert(torch.where(masked, MASK, windows)).last_hidden_state
        return functional.cross_entropy(model.cls(hidden[masked]), windows[masked])

    average, loss = descend(model, recipe, loss_of, weight_decay=recipe.weight_decay, report_every=100)
    return average.eval(), loss


def save(model: Any, folder: Path, recipe: Recipe, corpus: Corpus, metadata: dict[str, Any]) -> None:
    """Write the transformers folder: config, float16 weights, tokenizer, held-out text with its licence, metadata."""
    (folder / HELD_OUT).mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it readable by its owner alone
    tidy_config(folder / "config.json")
    tokenizer().save_pretrained(folder)
    _for_older_transformers(folder / "tokenizer_config.json")
    (folder / HELD_OUT / "calibration.txt").write_text(corpus.calibration, encoding="utf-8")
    (folder / HELD_OUT / "evaluation.txt").write_text(corpus.evaluation, encoding="utf-8")
    shutil.copyfile(licence(), folder / HELD_OUT / "LICENSE.txt")
    common = {
        "name": folder.name,
        "vocabulary": "printable ASCII and newline, one token per character",
        "mask_token_id": MASK,
        "window": recipe.window,
        "training_steps": recipe.steps,
        "seed": recipe.seed,
    }
    write_json(folder / "metadata.json", metadata | common)


def _for_older_transformers(path: Path) -> None:
    """Name the tokenizer's class as transformers before version 5 knows it; later ones take the name too."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries.pop("backend", None)
    write_json(path, entries | {"tokenizer_class": "PreTrainedTokenizerFast"})


def tokenizer() -> Any:
    """Build transformers' tokenizer that maps text to the ids of `vocabulary`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token=SPECIAL[1]))
    characters.normalizer = normalizers.Sequence(
        [normalizers.Replace(mark, plain) for mark, plain in vocabulary.TYPOGRAPHIC.items()]
    )
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    pad, unknown, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=pad,
        unk_token=unknown,
        mask_token=mask,
        model_max_length=CONFIG["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def finish(
    model: Any, loss: float, recipe: Recipe, corpus: Corpus, folder: Path, metadata: dict[str, Any], card: str
) -> None:
    """Write the folder of a trained model, with its card."""
    import torch

    save(model, folder, recipe, corpus, metadata)
    train_ids = vocabulary.encode(corpus.train)
    facts = {
        **vars(recipe),
        **vars(measure(folder, train_ids)),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_characters": len(train_ids),
        "train_loss": loss,
        "threads": torch.get_num_threads(),
        "texts": written(folder, 6),
    }
    write_card(folder, card, facts, ("transformers",))


def run(folder: Path, steps: int | None, corpus: Corpus, metadata: dict[str, Any], card: str) -> None:
    """Train on `corpus`, save, measure, write the card; `steps` None takes the recipe's."""
    import torch

    recipe = Recipe() if steps is None else Recipe(steps=steps)
    torch.manual_seed(recipe.seed)
    model, loss = train(torch.from_numpy(vocabulary.encode(corpus.train)), recipe)
    finish(model, loss, recipe, corpus, folder, metadata, card)
