"""The way back: float safetensors in the layout of the source, read by the safetensors library."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from arrowquant_nb import ArrowQuantV2, OutputError, ValidationError, dequantize_model, open_checkpoint, open_quantized
from arrowquant_nb.storage.safetensors_folder import TensorToWrite, index_name, write_safetensors


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def loaded(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("name", ["dit", "sharded", "mixed"])
def test_the_layout_names_shapes_and_dtypes_of_the_source_come_back(models, tmp_path, name):
    source = getattr(models, name)
    assert dequantize_model(models.quantized(name), tmp_path / "out") == tmp_path / "out"
    assert names(tmp_path / "out") == names(source)
    original, back = loaded(source), loaded(tmp_path / "out")
    assert {n: (a.shape, a.dtype) for n, a in back.items()} == {n: (a.shape, a.dtype) for n, a in original.items()}
    with open_quantized(models.quantized(name)) as model:
        for tensor in model.values():
            expected = model.dequantize(tensor.name, None if tensor.kept else tensor.dtype)
            assert back[tensor.name].tobytes() == np.asarray(expected).tobytes()
            if tensor.kept:
                assert back[tensor.name].tobytes() == original[tensor.name].tobytes()


def test_the_index_of_shards_is_restored(models, tmp_path):
    dequantize_model(models.quantized("sharded"), tmp_path / "out")
    index = "diffusion_pytorch_model.safetensors.index.json"
    ours, source = (json.loads((folder / index).read_text()) for folder in (tmp_path / "out", models.sharded))
    assert ours["weight_map"] == source["weight_map"]
    assert ours["metadata"]["total_size"] == source["metadata"]["total_size"]
    for shard in set(ours["weight_map"].values()):
        with safe_open(tmp_path / "out" / shard, "numpy") as opened:
            assert set(opened.keys()) == {n for n, s in ours["weight_map"].items() if s == shard}


def test_the_result_is_a_checkpoint_that_can_be_quantized_again(models, tmp_path):
    dequantize_model(models.quantized("sharded"), tmp_path / "out")
    with open_checkpoint(models.sharded) as original, open_checkpoint(tmp_path / "out") as again:
        assert again.class_name == original.class_name
        assert set(again.entries) == set(original.entries)


def test_a_full_folder_a_file_and_the_model_itself_are_refused(models, tmp_path):
    model = models.quantized("mixed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for output in (tmp_path / "full", tmp_path / "file", model, model / "out"):
        with pytest.raises(OutputError):
            dequantize_model(model, output)
    assert not (model / "out").exists()


def test_progress_rises_to_one(models, tmp_path):
    seen = []
    dequantize_model(models.quantized("mixed"), tmp_path / "out", lambda message, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("shard", "index"),
    [
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        (
            "diffusion_pytorch_model.fp16-00001-of-00003.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
        (
            "diffusion_pytorch_model-00001-of-00003.fp16.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
    ],
)
def test_an_index_is_named_as_the_libraries_name_it(shard, index):
    assert index_name(shard) == index


def test_hostile_names_and_all_dtypes_survive(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        'a"\\\n\0é': rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal(7).astype(np.float16),
        "c": rng.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16),
        "d": np.arange(3, dtype=np.int64),
        "e": np.array([True, False]),
        "f": np.zeros((0, 4), np.float32),
        "g": np.array(1.5, np.float32),
        "h": np.arange(5, dtype=np.uint8),
    }
    tensors = [TensorToWrite(n, a.shape, str(a.dtype)) for n, a in arrays.items()]
    path = tmp_path / "x.safetensors"
    write_safetensors(
        path,
        tensors,
        lambda n: memoryview(np.atleast_1d(arrays[n]).view(np.uint8)).cast("B") if arrays[n].size else memoryview(b""),
    )
    back = load_file(path)
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in back.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in arrays.items()
    }


def test_a_write_that_breaks_leaves_nothing_under_the_name(tmp_path):
    def content(name):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="disk is full"):
        write_safetensors(tmp_path / "x.safetensors", [TensorToWrite("a", (4,), "float32")], content)
    assert list(tmp_path.iterdir()) == []


def test_any_other_failure_leaves_nothing_either(tmp_path):
    def content(name):
        raise ValueError(name)

    with pytest.raises(ValueError, match="a"):
        write_safetensors(tmp_path / "x.safetensors", [TensorToWrite("a", (4,), "float32")], content)
    assert list(tmp_path.iterdir()) == []


def test_a_float8_source_comes_back_as_bfloat16_with_its_scale_multiplied_in(write, write_json, tmp_path):
    rng = np.random.default_rng(0)
    q, k = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k"
    codes = rng.standard_normal((2, 128, 128)).astype(ml_dtypes.float8_e4m3fn)
    scale = np.array(0.25, np.float32)
    tensors = {
        f"{q}.weight": codes[0],
        f"{q}.weight_scale": scale,
        f"{k}.weight": codes[1],
        "b": np.ones(3, np.float16),
    }
    write(tmp_path / "source" / "diffusion_pytorch_model.safetensors", tensors)
    write_json(tmp_path / "source" / "config.json", {"_class_name": "DiTTransformer2DModel"})
    ArrowQuantV2().quantize_diffusion_model(tmp_path / "source", tmp_path / "model")
    assert ArrowQuantV2().validate_quality(tmp_path / "source", tmp_path / "model").passed
    back = loaded(dequantize_model(tmp_path / "model", tmp_path / "out"))
    assert set(back) == {f"{q}.weight", f"{k}.weight", "b"}
    for name, expected in ((q, codes[0].astype(np.float32) * scale), (k, codes[1].astype(np.float32))):
        assert str(back[f"{name}.weight"].dtype) == "bfloat16"
        error = back[f"{name}.weight"].astype(np.float32) - expected
        assert np.square(error).sum() < 0.03 * np.square(expected).sum()


def test_a_damaged_model_leaves_no_half_written_file(models, tmp_path):
    shutil.copytree(models.quantized("mixed"), tmp_path / "model")
    raw = bytearray((tmp_path / "model" / "kept.parquet").read_bytes())
    raw[1000] ^= 1
    (tmp_path / "model" / "kept.parquet").write_bytes(raw)
    with pytest.raises(ValidationError, match=r"kept\.parquet"):
        dequantize_model(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []
