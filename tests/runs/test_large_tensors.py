"""Tensors of more than one tile: the same values, the same checks, bounded memory."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from arrowquant_nb import ArrowQuantV2, CheckpointError, DiffusionQuantConfig, open_quantized, quantize_tensor
from tests.conftest import tree, write_checkpoint

BIG = "transformer_blocks.0.attn1.to_q.weight"
TABLE = "pos_embed.proj.weight"
SMALL = "transformer_blocks.0.attn1.to_k.weight"


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(4)
    values = rng.integers(-2000, 2000, (8200, 1100), np.int16).astype(np.float16) * np.float16(1e-4)
    return {SMALL: values[:256, :256].copy(), BIG: values, TABLE: values[:, :1024].astype(np.float32)}


@pytest.fixture(scope="module")
def source(tensors, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("large") / "model", tensors)


@pytest.fixture(scope="module")
def model(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "quantized"
    ArrowQuantV2(DiffusionQuantConfig(method="rtn", num_threads=2)).quantize_diffusion_model(source, folder)
    return folder


def test_several_tiles_hold_what_one_array_would(model, tensors):
    with open_quantized(model, "full") as opened:
        tiles = list(opened[BIG].tiles())
        assert len(tiles) == 2
        assert all(tile.packed.nbytes <= 16 << 20 for _, tile in tiles)
        whole = quantize_tensor(tensors[BIG], 4, 64, "rtn")
        np.testing.assert_array_equal(opened.dequantize(BIG), whole.dequantize())
        assert opened[BIG].nbytes == whole.nbytes
        stats = {r["layer_name"]: r for r in opened.stats().to_pylist()}
        assert stats[BIG]["sqnr_db"] == pytest.approx(whole.statistics.sqnr_db, rel=1e-12)


def test_a_large_kept_tensor_is_stored_in_tiles_of_its_own_file(model, tensors):
    with open_quantized(model) as opened:
        assert len(opened[TABLE].references) == 3
        assert opened[TABLE].file != "kept.parquet"
        np.testing.assert_array_equal(opened.dequantize(TABLE), tensors[TABLE])
        out = np.empty_like(tensors[TABLE])
        np.testing.assert_array_equal(opened.dequantize(TABLE, out=out), tensors[TABLE])


def test_one_thread_gives_the_same_bytes_as_two(source, model, tmp_path):
    config = DiffusionQuantConfig(method="rtn", num_threads=1)
    ArrowQuantV2(config).quantize_diffusion_model(source, tmp_path / "model")
    assert tree(tmp_path / "model") == tree(model)


def test_the_original_and_the_model_agree(source, model):
    assert ArrowQuantV2().validate_quality(source, model).passed


@pytest.mark.parametrize("row", [0, 8190])
def test_a_number_that_is_none_is_found_in_any_tile(tensors, tmp_path, row):
    bad = tensors[BIG].copy()
    bad[row, 7] = np.nan
    source = write_checkpoint(tmp_path / "source", {BIG: bad})
    with pytest.raises(CheckpointError) as caught:
        ArrowQuantV2(DiffusionQuantConfig(method="rtn")).quantize_diffusion_model(source, tmp_path / "model")
    assert BIG in str(caught.value)
    assert f"{row}, 7" in str(caught.value)
    assert not list((tmp_path / "model").glob("*.parquet"))
    assert not list((tmp_path / "model").glob(".tmp-*"))


def test_a_cancel_between_tiles_discards_the_layer_and_the_next_run_finishes(source, model, tmp_path):
    quantizer = ArrowQuantV2(DiffusionQuantConfig(method="rtn"))

    def cancel(event):
        if event.kind == "layer_progress":
            quantizer.cancel()

    with pytest.raises(Exception, match="resume"):
        quantizer.quantize_diffusion_model(source, tmp_path / "model", on_event=cancel)
    assert not list((tmp_path / "model").glob("*to_q*"))
    quantizer.quantize_diffusion_model(source, tmp_path / "model")
    assert tree(tmp_path / "model") == tree(model)


# Sparse files: gigabytes of zeros that take no space, with the header a real checkpoint has.
MEASURE = """
import json, sys, threading, time
from pathlib import Path
import psutil
import arrowquant_nb.api, arrowquant_nb.storage.parquet_v2
from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig
folder, output, settings = sys.argv[1:]
quantizer = ArrowQuantV2(DiffusionQuantConfig(**json.loads(settings)))
quantizer.quantize_diffusion_model(Path(folder) / "tiny", Path(output) / "tiny")
me = psutil.Process()
baseline = me.memory_full_info().uss
peak, done = baseline, threading.Event()
def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, me.memory_full_info().uss)
thread = threading.Thread(target=watch)
thread.start()
quantizer.quantize_diffusion_model(Path(folder) / "large", Path(output) / "large")
done.set()
thread.join()
print(peak - baseline)
"""


def write_sparse(folder, shapes):
    folder.mkdir()
    header, offset = {}, 0
    for name, (rows, columns) in shapes.items():
        header[name] = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [offset, offset + 2 * rows * columns]}
        offset += 2 * rows * columns
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')


@pytest.mark.parametrize("kept", [False, True])
def test_memory_does_not_grow_with_the_size_of_a_tensor(tmp_path, kept):
    """One tensor of 201 MB: a copy of it alone would break the bound, tiles in flight take about 110 MB."""
    write_sparse(tmp_path / "large", {BIG: (24576, 4096)})
    write_sparse(tmp_path / "tiny", {BIG: (256, 256)})
    settings = {"method": "rtn", "num_threads": 2} | ({"layer_bit_widths": {"*": 16}} if kept else {})
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path), str(tmp_path / "out"), json.dumps(settings)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=300)
    shutil.rmtree(tmp_path / "out")
    assert int(done.stdout) < 170e6
