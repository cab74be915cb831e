"""Quality, size and speed of our methods and of what else can be installed, on the same matrices and models.

    python tests/bench/quality [--results FILE] [--cache FOLDER] [--sections matrix models activations gptq frechet]
                               [--models digits-dit docs-mlm plucks-dit stdlib-mlm] [--peers ggml hqq ...]
                               [--seeds 0 1 2] [--n 20]

Writes one JSON file: each section with the machine, the versions and the date it was measured on; sections that are not
asked for stay as they are. `notebooks/05_quality.ipynb` shows it. Peers get an environment each under the cache folder.
"""

import argparse
import datetime as dt
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import activations
import environments
import gptq_cost
import matrices
import models
import numpy as np
import targets

from arrowquant_nb import build_info
from arrowquant_nb.samples import names

SECTIONS = ("matrix", "models", "activations", "gptq", "frechet")
DEFAULT_RESULTS = Path(__file__).resolve().parents[3] / "notebooks" / "05_quality.json"
FRECHET_N = 512
FRECHET_CASES = (
    ("rtn g32", 4, 32, "rtn", "float16"),
    ("gptq k g32", 4, 32, "gptq", "k"),
    ("rtn g32", 2, 32, "rtn", "float16"),
    ("gptq k g16", 2, 16, "gptq", "k"),
)


def about(seeds: list[int], n: int) -> dict[str, object]:
    """Say where, when and with what a section was measured."""
    info = build_info()
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[1], 1),
        "isa": info["isa"],
        "versions": {**info["versions"], **_torch()},
        "calibration_seeds": seeds,
        "calibration_trajectories": models.TRAJECTORIES,
        "evaluation_seed": models.EVALUATION_SEED,
        "evaluation_samples": n,
    }


def _torch() -> dict[str, str]:
    """Version of the torch that the peers share."""
    try:
        return {"torch": version("torch")}
    except PackageNotFoundError:
        return {}


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


class Results:
    """The file of results; written after every row, so that a long run that ends early is not lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.is_file() else {}

    def fill(self, section: str, facts: dict[str, object], rows: Iterable[dict[str, object]]) -> None:
        """Replace one section."""
        found: list[dict[str, object]] = []
        for row in rows:
            found.append(_rounded(row))
            print(section, json.dumps(found[-1]), flush=True)
            self.content[section] = {"about": facts, "rows": found}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(dict(sorted(self.content.items())), indent=1) + "\n")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items() if key != "file"}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS)
    parser.add_argument("--cache", type=Path, default=environments.default_cache())
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--models", nargs="+", default=list(names()))
    parser.add_argument("--peers", nargs="*", default=[peer.name for peer in environments.PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=20, help="samples that a model is judged on")
    parser.add_argument("--size", type=int, default=3072, help="rows and columns of the layer that GPTQ is timed on")
    options = parser.parse_args()
    results, facts = Results(options.results), about(options.seeds, options.n)
    asked = [peer for peer in environments.PEERS if peer.name in options.peers]
    needs_peers = {"matrix", "models"} & set(options.sections)
    peers = {peer: environments.environment(peer, options.cache) for peer in asked} if needs_peers else {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "matrix" in options.sections:
            results.fill("matrix", facts, matrices.rows(peers, scratch))
        if "models" in options.sections:
            for name in options.models:
                bits = (2, 4, 8) if name == "digits-dit" else (2,)
                rows = models.rows(name, peers, scratch, options.seeds, options.n, bits)
                results.fill(name, facts, rows)
    if "activations" in options.sections:
        results.fill("activations", facts, activations.rows(options.seeds, options.n))
    if "gptq" in options.sections:
        results.fill("gptq", facts, gptq_cost.rows(options.size))
    if "frechet" in options.sections:
        cases = models.chosen("digits-dit", FRECHET_CASES, options.seeds[:1], FRECHET_N)
        results.fill("frechet", facts | {"evaluation_samples": FRECHET_N}, cases)
    results.fill("targets", {}, list(targets.rows(results.content)))


if __name__ == "__main__":
    sys.exit(main())
