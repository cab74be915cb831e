"""Fixtures that several rooms share: small genuine checkpoints, written with the safetensors library itself.

`models` builds each folder once per session and never lets a test write into it.
"""

import atexit
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from safetensors.numpy import save_file

from arrowquant_nb.config import DiffusionQuantConfig

# Calibrations of the tests are kept apart from the user's own; child processes inherit the place.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="arrowquant-test-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# How long an example takes says something of the machine's other work, nothing of the claim.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# What may differ between two equal runs; every other file is byte-identical.
NOT_COMPARED = ("run.json", "events.jsonl", "journal.jsonl", ".lock")


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    stem: str = "diffusion_pytorch_model",
    n_shards: int = 1,
) -> Path:
    """Write a component folder; several shards get the index that goes with them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config or {"_class_name": "DiTTransformer2DModel"}), indent=1))
    if n_shards == 1:
        save_file(dict(tensors), folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for k in range(n_shards):
        shard = f"{stem}-{k + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[k::n_shards]
        save_file({n: tensors[n] for n in part}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    total = sum(a.nbytes for a in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return folder


def dit_tensors(seed: int = 0, dtype: str = "float16", n_blocks: int = 2, width: int = 128) -> dict[str, np.ndarray]:
    """A small diffusion transformer: 0.3 M weights a block, kept embedders, a row tail, odd tensors."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_t(5, shape) * 0.03).astype(np.float32).astype(DTYPES[dtype])

    tensors = {"pos_embed.proj.weight": weight(width, 4, 2, 2), "pos_embed.proj.bias": weight(width)}
    for k in range(n_blocks):
        block = f"transformer_blocks.{k}"
        for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"):
            tensors[f"{block}.{name}.weight"] = weight(width, width)
            tensors[f"{block}.{name}.bias"] = weight(width)
        tensors[f"{block}.attn2.to_k.weight"] = weight(width, 200)
        tensors[f"{block}.conv.weight"] = weight(64, 32, 3, 3)
        tensors[f"{block}.ff.net.0.proj.weight"] = weight(4 * width, width)
        tensors[f"{block}.ff.net.2.weight"] = weight(width, 4 * width)
        tensors[f"{block}.norm1.linear.weight"] = weight(6 * width, width)
    tensors["proj_out_2.weight"] = weight(16, width)
    tensors["position_ids"] = np.arange(64, dtype=np.int64)
    tensors["step"] = np.array(7, np.int64)
    tensors["nothing"] = np.zeros((0, 4), np.float32)
    return tensors


def mixed_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Four layers of three float dtypes, a convolution among them."""
    rng = np.random.default_rng(seed)

    def weight(dtype: str, *shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32).astype(DTYPES[dtype])

    return {
        "layers.0.weight": weight("bfloat16", 160, 144),
        "layers.0.bias": weight("bfloat16", 160),
        "layers.1.weight": weight("float16", 200, 160),
        "layers.2.weight": weight("float32", 96, 200),
        "layers.2.conv.weight": weight("float32", 48, 48, 3, 3),
    }


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model that is promised to be byte-identical, by relative name."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in sorted(files.items()) if n not in NOT_COMPARED}


class Models:
    """Source folders and finished models by name, each made once per session."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Path] = {}

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        if name not in self._made:
            make(self._root / name)
            self._made[name] = self._root / name
        return self._made[name]

    @property
    def dit(self) -> Path:
        """Component folder, float16, one file."""
        return self._once("dit", lambda p: write_checkpoint(p, dit_tensors()))

    @property
    def sharded(self) -> Path:
        """The same tensors in bfloat16, three shards with an index."""
        return self._once("sharded", lambda p: write_checkpoint(p, dit_tensors(1, "bfloat16"), n_shards=3))

    @property
    def mixed(self) -> Path:
        """Folder of plain layers in three dtypes; `metadata.json` says the modality."""

        def make(path: Path) -> None:
            write_checkpoint(path, mixed_tensors(), {}, "model")
            (path / "metadata.json").write_text('{"modality": "image"}')

        return self._once("mixed", make)

    def quantized(self, name: str = "dit", **settings: Any) -> Path:
        """A finished model of one of the sources above, INT4 uls unless said otherwise; for reading only."""
        from arrowquant_nb.api import ArrowQuantV2

        label = "-".join([name, "quantized", *(f"{k}={v}" for k, v in sorted(settings.items()))])
        source = getattr(self, name)
        config = DiffusionQuantConfig(**settings)
        return self._once(label, lambda p: ArrowQuantV2(config).quantize_diffusion_model(source, p))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Small checkpoints and quantized models; see `Models`."""
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of digits-dit, INT4, calibrated on four trajectories; for reading only."""
    from arrowquant_nb.api import ArrowQuantV2

    folder = tmp_path_factory.mktemp("sample") / "digits-int4"
    config = DiffusionQuantConfig(calibration_samples=4, num_time_groups=5)
    ArrowQuantV2(config).quantize_diffusion_model("digits-dit", folder)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Pin matrix products to one thread: on a busy machine the threads of many tiny ones only wait for each other."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    if torch:
        torch.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield
    if torch:
        torch.set_num_threads(before)
