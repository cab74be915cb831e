"""The card of a masked language model: what it is, how it was trained, what it measures; places are left open."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CARD_MODEL = """\
## The model

transformers' `BertForMaskedLM` with {n_parameters:,} parameters: 3 layers, 4 heads, width 128, windows of {window}
characters. The tokens are printable ASCII, the newline, and `[PAD]`, `[UNK]`, `[MASK]`; `tokenizer.json` maps them.
There is no time input (LLaDA style): how much is masked can be seen. {megabytes:.2f} MB in float16.

```python
from transformers import AutoTokenizer, BertForMaskedLM

model = BertForMaskedLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

or, without torch, `arrowquant_nb.samples.runnable(name).sample(n, seed)`: one character is unmasked per
network call, in an order drawn from the seed, at temperature 0.7.

"""
CARD_END = """\
## Training

`python -m arrowquant_nb.samples.train` with the model's name (extra `train`): {steps} steps of AdamW, batch
{batch_size}, peak rate {learning_rate} with {warmup} steps of warm-up and half a cosine down to zero, weight decay
{weight_decay}, gradient norm clipped at 1, betas 0.9 and 0.99. In each window a share of characters between 2 % and
100 % is masked, the shares spread evenly (over the first {gentle_steps} steps the largest share rises from 20 %); the
loss is the cross entropy of masked characters. Before training the heads of the first two layers look at near
neighbours. Saved is the moving average of the weights (decay {ema_decay}). Seed {seed}, torch threads: {threads}.
Another machine or torch build gives other roundings, so other weights.

## Measured

Nats per character over {n_windows} windows of {window} characters, 25 shares of masked characters each, from the
stored float16 weights by the NumPy forward pass.

| Figure | Value |
|---|---|
| bound on the negative log-likelihood (NELBO), evaluation text | {nelbo:.3f} |
| the same, calibration text | {nelbo_calibration:.3f} |
| the same, training text | {nelbo_train:.3f} |
| cross entropy of the evaluation text under the training text's character frequencies | {frequencies:.3f} |
| cross entropy at masked characters, 10 % masked, evaluation text | {few:.3f} |
| the same, half masked | {half:.3f} |
| the same, 90 % masked | {most:.3f} |
| masked characters guessed right, 10 % masked | {top1_few:.1%} |
| last running mean of the training loss | {train_loss:.3f} |
| largest difference, NumPy forward pass against transformers | {difference_transformers:.1e} |

Drawn with seed 0:

{texts}

Measured with {versions}.

## Limits

It knows characters within a window of {window}, so it spells and imitates layout; what it writes means nothing. A
demonstration and a test article.

## Licence

The weights are under the MIT licence of arrowquant_nb. The text in `held_out` is Python's, under the PSF licence.
"""


def with_held_out(card: str, held_out: Mapping[str, tuple[str, ...]]) -> str:
    """Fill in the Python version and the names of what is held out, and leave the other places open."""
    for place, text in {
        "python": platform.python_version(),
        **{part: ", ".join(f"`{name}`" for name in names) for part, names in held_out.items()},
    }.items():
        card = card.replace(f"{{{place}}}", text)
    return card
