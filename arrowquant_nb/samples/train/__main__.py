"""Train bundled models and write their folders: `python -m arrowquant_nb.samples.train [name ...]`."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from arrowquant_nb.samples import WEIGHTS

from . import digits, docs, plucks, stdlib

logger = logging.getLogger(__name__)

RECIPES = {module.NAME: module.run for module in (digits, docs, plucks, stdlib)}


def main() -> None:
    """Read the command line and train."""
    import torch  # noqa: PLC0415  comes with the extra `train`

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m arrowquant_nb.samples.train", description="Train bundled models.")
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(RECIPES)} (default: all)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the folders go (default: the package's)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: as each recipe says)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the result depends on it (default: 1)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - RECIPES.keys()):
        parser.error(f"no such model: {', '.join(unknown)}; there are: {', '.join(RECIPES)}")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(mode=True)
    for name in options.names or RECIPES:
        started = time.perf_counter()
        RECIPES[name](options.out / name, options.steps)
        logger.info("%s: trained and measured in %.0f s", name, time.perf_counter() - started)


if __name__ == "__main__":
    main()
