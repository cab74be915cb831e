"""Rotation and low-rank branch in a whole run: planned, stored, opened, validated, written back."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from arrowquant_nb import (
    ArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    ParquetV2Extended,
    ValidationError,
    dequantize_model,
    open_quantized,
    quantize_tensor,
)
from arrowquant_nb.storage.manifest import Manifest, read_manifest
from tests.conftest import dit_tensors, tree, write_checkpoint

Q = "transformer_blocks.0.attn1.to_q.weight"
NARROW = "transformer_blocks.0.attn2.to_k.weight"  # rows of 200 = 8 * 25 weights
SETTINGS = {"rotation": "auto", "low_rank": 4, "seed": 11}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tensors = dit_tensors()
    rng = np.random.default_rng(0)
    for name in [n for n in tensors if n.startswith("transformer_blocks") and tensors[n].ndim == 2]:
        w = tensors[name].astype(np.float32)
        w[:, rng.choice(w.shape[1], 2, replace=False)] *= 8
        w += 0.05 * np.outer(rng.standard_normal(w.shape[0]), rng.standard_normal(w.shape[1]))
        tensors[name] = w.astype(np.float16)
    return write_checkpoint(tmp_path_factory.mktemp("transforms") / "model", tensors)


@pytest.fixture(scope="module")
def both(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transforms") / "quantized"
    return folder, ArrowQuantV2(DiffusionQuantConfig(**SETTINGS)).quantize_diffusion_model(source, folder)


def by_name(result):
    return {r.name: r for r in result.layers}


def test_the_plan_is_exact(source, both):
    plan = {r.name: r.nbytes for r in ArrowQuantV2(DiffusionQuantConfig(**SETTINGS)).plan(source).rows}
    layers = by_name(both[1])
    branches = [r for r in layers.values() if r.action == "quantized" and r.low_rank]
    assert branches
    assert all(plan[r.name] == r.nbytes for r in branches)
    assert all(plan[r.name] > r.nbytes for r in layers.values() if r.action == "quantized" and not r.low_rank)


def test_reports_say_what_was_done_and_it_lowers_the_error(source, both, tmp_path):
    plain = by_name(ArrowQuantV2().quantize_diffusion_model(source, tmp_path / "plain"))
    done = by_name(both[1])
    assert done[Q].rotation_seed == 11
    assert done[Q].low_rank == 4
    assert done[NARROW].rotation_seed is None
    assert all(done[n].sqnr_db >= plain[n].sqnr_db for n in done if done[n].action == "quantized")
    assert done[Q].sqnr_db > plain[Q].sqnr_db + 1
    kept = [r for r in done.values() if r.action == "kept"]
    assert all((r.rotation_seed, r.low_rank) == (None, 0) for r in kept)


def test_an_opened_model_has_the_values_that_were_measured(source, both):
    original = load_file(source / "diffusion_pytorch_model.safetensors")[Q].astype(np.float64)
    with open_quantized(both[0], "full") as model:
        tensor = model[Q]
        q = tensor.dequantize().astype(np.float64)
        sqnr = 10 * np.log10((original**2).sum() / ((q - original) ** 2).sum())
        assert sqnr == pytest.approx(by_name(both[1])[Q].sqnr_db, abs=0.01)
        assert (tensor.rotation_seed, tensor.low_rank) == (11, 4)
        assert tensor.nbytes == by_name(both[1])[Q].nbytes
        assert "INT4 uls k g32, rotated, rank 4, " in repr(tensor)
        assert np.array_equal(tensor.read_rows(3, 5), q[3:8].astype(np.float32))


def test_the_model_passes_validation_and_goes_back_to_float(source, both, tmp_path):
    assert ArrowQuantV2().validate_quality(source, both[0]).passed
    dequantize_model(both[0], tmp_path / "float")
    back = load_file(tmp_path / "float" / "diffusion_pytorch_model.safetensors")
    with open_quantized(both[0]) as model:
        assert np.array_equal(back[Q], model[Q].dequantize("float16"))


def test_data_files_stand_for_themselves(both):
    folder, result = both
    with open_quantized(folder) as model:
        path = folder / model[Q].file
    row = next(iter(ParquetV2Extended(path).rows(Q)))
    assert row["rotation_seed"] == 11
    rows, columns = by_name(result)[Q].shape
    assert (len(row["low_rank_a"]), len(row["low_rank_b"])) == (2 * 4 * rows, 2 * 4 * columns)
    assert pq.read_table(path)["rotation_seed"].to_pylist() == [11]


def test_threads_change_no_byte_and_a_resumed_run_reuses(source, both, tmp_path):
    folder = tmp_path / "again"
    one = DiffusionQuantConfig(**SETTINGS, num_threads=1)
    ArrowQuantV2(one).quantize_diffusion_model(source, folder)
    assert tree(folder) == tree(both[0])
    assert ArrowQuantV2(one).quantize_diffusion_model(source, folder).reused == len(both[1].layers)
    other = ArrowQuantV2(one.replace(seed=12)).quantize_diffusion_model(source, folder)
    kept = sum(r.action == "kept" for r in other.layers)
    assert other.reused == kept


def test_a_rotation_that_a_layer_cannot_have_is_refused_by_the_plan(source):
    config = DiffusionQuantConfig(rotation="hadamard")
    with pytest.raises(ConfigurationError, match=rf"{NARROW}: rows of 200 weights cannot be rotated"):
        ArrowQuantV2(config).plan(source)
    skipped = config.replace(layer_bit_widths={"*attn2*": 16})
    assert ArrowQuantV2(skipped).plan(source).rows


@pytest.mark.parametrize(
    "change",
    [
        {"rotation_seed": -1},
        {"rotation_seed": "x"},
        {"low_rank": 3},
        {"low_rank": 0},
        {"low_rank": 10**9},
    ],
)
def test_a_damaged_manifest_is_refused(both, tmp_path, change):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in both[0].iterdir():
        (folder / path.name).symlink_to(path)
    manifest = read_manifest(folder)
    manifest.tensors[Q].update(change)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(Manifest(manifest.model, manifest.tensors, manifest.files).encode())
    with open_quantized(folder) as model, pytest.raises(ValidationError, match="damaged"):
        model[Q].dequantize()


def test_layers_of_several_tiles(tmp_path):
    rng = np.random.default_rng(4)
    w = (rng.standard_t(5, (8200, 1040)) * 0.03).astype(np.float16)
    w[:, [5, 700]] *= 8
    source = write_checkpoint(tmp_path / "large", {Q: w})
    rotated = DiffusionQuantConfig(rotation="auto", method="rtn", seed=2)
    ArrowQuantV2(rotated).quantize_diffusion_model(source, tmp_path / "rotated")
    with open_quantized(tmp_path / "rotated", "full") as model:
        assert len(model[Q].references) == 2
        whole = quantize_tensor(w, 4, 64, "rtn", rotation="hadamard", seed=2)
        assert np.array_equal(model[Q].dequantize(), whole.dequantize())
    ArrowQuantV2(rotated.replace(rotation="none", low_rank=2)).quantize_diffusion_model(source, tmp_path / "branch")
    with open_quantized(tmp_path / "branch", "full") as model:
        first, second = (dict(r.ranges) for r in model[Q].references)
        assert "low_rank_b" in first
        assert "low_rank_b" not in second
        assert second["low_rank_a"][1] == 2 * 2 * model[Q].references[1].row_count
        stats = json.loads(json.dumps(model.stats().to_pylist()))[0]
    assert ArrowQuantV2().validate_quality(source, tmp_path / "branch").passed
    assert stats["sqnr_db"] > 15
