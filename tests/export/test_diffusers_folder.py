"""The folder for diffusers: what stands in it, that it reads back to the same values; a wrong one is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from arrowquant_nb import (
    ArrowQuantError,
    MetadataError,
    ModelNotFoundError,
    ShapeMismatchError,
    export_model,
    open_quantized,
)
from arrowquant_nb.export.folder_reader import open_exported
from arrowquant_nb.export.folder_settings import FolderLayer, FolderSettings
from arrowquant_nb.quantizers.tensor import QuantizedTensor
from arrowquant_nb.quantizers.time_tables import LayerTimeTable, TimeAwareQuantMetadata, TimeGroupParams
from arrowquant_nb.time_reading import TimeReading

Q = "transformer_blocks.0.attn1.to_q.weight"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """INT4 model, a folder of our own to copy from."""
    path = tmp_path_factory.mktemp("folder") / "out"
    report = export_model(models.quantized("dit", scale_format="float16"), "diffusers", path)
    assert report.warnings == ()
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """Return a copy to damage; hard links would be changed too."""
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")


def values(item):
    return item.dequantize() if isinstance(item, QuantizedTensor) else item


@pytest.mark.parametrize(
    ("name", "given_settings"),
    [
        ("dit", {}),
        ("sharded", {"bit_width": 2, "method": "r2q", "min_accuracy": 0.0}),
        ("mixed", {"bit_width": 8, "method": "rtn"}),
        ("dit", {"bit_width": 4, "group_size": 32, "scale_format": "k", "method": "uls"}),
        ("dit", {"rotation": "hadamard", "low_rank": 4, "seed": 11, "layer_bit_widths": {"*attn2.to_k.weight": 16}}),
    ],
)  # fmt: skip
def test_every_grid_reads_back_to_the_same_values(models, tmp_path, name, given_settings):
    source = models.quantized(name, **given_settings)
    export_model(source, "diffusers", tmp_path / "out")
    found = open_exported(tmp_path / "out")
    with open_quantized(source) as model:
        assert set(found) == set(model)
        assert found.settings.modality == model.modality
        for tensor_name, tensor in model.items():
            other = found[tensor_name]
            assert isinstance(other, QuantizedTensor) != tensor.kept
            np.testing.assert_array_equal(values(other), tensor.dequantize(), err_msg=tensor_name)


def test_the_files_hold_what_the_layout_says(models, folder):
    tensors = load_file(folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "DiTTransformer2DModel"
    stored = config["quantization_config"]
    assert (stored["quant_method"], stored["format_version"]) == ("arrowquant", "1.1")
    entry = stored["layers"][Q]
    assert entry == {
        "shape": [128, 128], "dtype": "float16", "bit_width": 4, "group_size": 64, "grid": "minimum", "method": "uls",
    }  # fmt: skip
    assert Q not in tensors
    with open_quantized(models.quantized("dit", scale_format="float16")) as model:
        _, tile = next(iter(model[Q].tiles()))
        for part in ("packed", "scales", "zero_points"):
            np.testing.assert_array_equal(tensors[f"{Q}.{part}"], getattr(tile, part))
        kept = {n for n in model if model[n].kept}
        assert kept == set(stored["kept"])
        for name in kept:
            assert tensors[name].tobytes() == bytes(model[name].bytes_view())


def test_settings_read_back_equal_with_time_tables():
    group = TimeGroupParams((0, 1000), 0.5, 7, 64)
    table = TimeAwareQuantMetadata(
        8, 1000, "mse", (LayerTimeTable.of_groups("a.weight", (group,)),), TimeReading((-1.0, 3.0), 4)
    )
    layer = FolderLayer((4, 32), "bfloat16", 2, 16, "k", "gptq", "float32", 5, 2, "float16", 3, 8, "per_group")
    whole = FolderSettings({"a.weight": layer}, "audio", ("a.bias",), table)
    assert FolderSettings.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    parts = layer.parts()
    assert parts["packed"] == ((4, 8), "uint8")
    assert parts["scales"] == ((4, 4 + 1), "uint8")  # one float32 and two integers of 4 bits
    assert parts["low_rank_a"] == ((4, 2), "float16")
    assert parts["low_rank_b"] == ((2, 32), "float16")
    assert parts["equalization"] == ((32,), "float16")
    assert parts["activation_means"] == ((3, 32), "float32")


def change_tensors(path, change):
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.scales"), "to_q.weight.scales"),
        (lambda t: t.update({f"{Q}.equalization": np.ones(128, np.float16)}), "to_q.weight.equalization"),
        (lambda t: t.update({Q: np.ones((128, 128), np.float16)}), "floats and listed as quantized"),
        (lambda t: t.update({f"{Q}.packed": t[f"{Q}.packed"][:64].copy()}), r"uint8 \[64, 64\]"),
        (lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].astype(np.float32)}), "found float32"),
        (lambda t: t.pop("proj_out_2.weight"), "missing.*proj_out_2.weight"),
        (lambda t: t.update({"lora.weight": np.ones(3, np.float32)}), "not expected.*lora.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(copy, change, message):
    change_tensors(copy, change)
    with pytest.raises(ShapeMismatchError, match=message):
        open_exported(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("quantization_config"), "plain floats"),
        (lambda c: c["quantization_config"].update(quant_method="gguf"), "'gguf', not 'arrowquant'"),
        (lambda c: c["quantization_config"].update(format_version="2.0"), "update arrowquant_nb"),
        (lambda c: c["quantization_config"].update(format_version=1), "not MAJOR.MINOR"),
        (lambda c: c["quantization_config"].update(colour="red"), "unknown keys.*colour"),
        (lambda c: c["quantization_config"].update(layers=[]), "layers must be an object"),
        (lambda c: c["quantization_config"].update(kept="all"), "kept must be a list"),
        (lambda c: c["quantization_config"].update(time_aware={"bit_width": 8}), "time_aware is damaged"),
        (lambda c: c["quantization_config"]["layers"][Q].update(bit_width=3), "to_q.weight.*bit_width 3"),
        (lambda c: c["quantization_config"]["layers"][Q].update(bit_width="4"), "to_q.weight.*integers"),
        (lambda c: c["quantization_config"]["layers"][Q].update(shape=[1 << 40, 1 << 40]), "cannot be"),
        (lambda c: c["quantization_config"]["layers"][Q].update(shape=[2] * 100_000), "100000 numbers"),
        (lambda c: c["quantization_config"]["layers"][Q].update(shape=[True, 128]), "integers"),
        (lambda c: c["quantization_config"]["layers"][Q].update(shape=7), "damaged"),
        (lambda c: c["quantization_config"]["layers"][Q].update(rotation_seed=-1), "seed -1"),
        (lambda c: c["quantization_config"]["layers"][Q].update(shift=1), "unknown keys.*shift"),
        (lambda c: c["quantization_config"]["layers"][Q].pop("grid"), "grid"),
        (lambda c: c["quantization_config"]["layers"].update({Q: None}), "damaged"),
    ],
)  # fmt: skip
def test_a_damaged_config_is_refused(copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(MetadataError, match=message):
        open_exported(copy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LAYER_KEYS = sorted(item.name for item in dataclasses.fields(FolderLayer))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["modality", "kept", "time_aware", "format_version", "layers", *LAYER_KEYS]), JSON)
def test_any_json_is_read_or_refused(key, value):
    layer = FolderLayer((4, 32), "float32", 4, 32, "minimum", "uls").to_dict()
    config = FolderSettings({"a": FolderLayer.from_dict("a", layer)}, "image", ("b",)).to_dict()
    if key in LAYER_KEYS:
        config["layers"]["a"] = layer | {key: value}
    else:
        config[key] = value
    try:
        found = FolderSettings.from_dict(config)
    except MetadataError:
        return
    assert FolderSettings.from_dict(found.to_dict()) == found


def test_a_later_minor_version_may_add_keys(copy):
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["format_version"] = "1.7"
    config["quantization_config"]["layers"][Q]["shift"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    assert open_exported(copy).settings.format_version == "1.7"


def test_no_folder_and_no_config_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError):
        open_exported(tmp_path / "none")
    with pytest.raises(MetadataError, match=r"has no config\.json"):
        open_exported(tmp_path)


def test_a_truncated_file_is_an_error_of_ours(copy):
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[:-10])
    with pytest.raises(ArrowQuantError, match="safetensors"):
        open_exported(copy)
