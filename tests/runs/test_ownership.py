"""What a run may touch: its own folder, its own files; and whose model stands there."""

import json

import pytest

from arrowquant_nb import (
    ArrowQuantV2,
    DiffusionQuantConfig,
    OutputError,
    ValidationError,
    dequantize_model,
    open_quantized,
)
from arrowquant_nb.storage.manifest import Manifest, read_manifest
from tests.conftest import dit_tensors, tree, write_checkpoint


def test_a_folder_with_a_foreign_manifest_is_left_alone(models, tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my web app"}')
    (folder / "customers.parquet").write_bytes(b"PAR1")
    before = tree(folder)
    with pytest.raises(OutputError, match="not a model of ours"):
        ArrowQuantV2().quantize_diffusion_model(models.dit, folder)
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["run.json", "events.jsonl", "README.md", "data.parquet"])
def test_a_single_foreign_file_is_enough_to_refuse(models, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="not a model of ours"):
        ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_finished_model_of_another_source_is_replaced_only_on_request(models, tmp_path):
    other = write_checkpoint(tmp_path / "other", dit_tensors(n_blocks=1))
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(OutputError, match="overwrite"):
        ArrowQuantV2().quantize_diffusion_model(other, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    ArrowQuantV2().quantize_diffusion_model(other, tmp_path / "out", overwrite=True)
    ArrowQuantV2().quantize_diffusion_model(other, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def resealed(folder, change):
    manifest = read_manifest(folder)
    change(manifest)
    (folder / "manifest.json").write_bytes(Manifest(manifest.model, manifest.tensors, manifest.files).encode())


def test_a_manifest_cannot_make_dequantize_write_elsewhere(models, tmp_path):
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    (tmp_path / "victim.safetensors").write_text("mine")
    resealed(
        tmp_path / "model",
        lambda m: [t.update(source_file="../victim.safetensors") for t in m.tensors.values()],
    )
    with pytest.raises(ValidationError, match="source file"):
        dequantize_model(tmp_path / "model", tmp_path / "back")
    assert (tmp_path / "victim.safetensors").read_text() == "mine"


@pytest.mark.parametrize("component", ["..", "../elsewhere", "/tmp/elsewhere"])
def test_a_component_cannot_lead_dequantize_elsewhere(models, tmp_path, component):
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    resealed(tmp_path / "model", lambda m: m.model.update(component=component))
    with pytest.raises(ValidationError, match="component"):
        dequantize_model(tmp_path / "model", tmp_path / "back")
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_a_manifest_cannot_make_a_requantization_copy_from_elsewhere(models, tmp_path):
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    (tmp_path / "secret").write_text("theirs")
    resealed(tmp_path / "model", lambda m: m.model["metadata_files"].append("../secret"))
    with pytest.raises(ValidationError, match="secret"):
        ArrowQuantV2().quantize_diffusion_model(tmp_path / "model", tmp_path / "again", requantize=True)


def test_validation_needs_the_very_weights(models, tmp_path):
    changed = dict(dit_tensors())
    name = next(n for n, a in changed.items() if a.ndim == 2 and a.size >= 16384)
    changed[name] = changed[name].copy()
    changed[name].flat[7] *= 1.001 if changed[name].dtype.itemsize == 4 else 1.5
    source = write_checkpoint(tmp_path / "source", dit_tensors())
    other = write_checkpoint(tmp_path / "other", changed)
    ArrowQuantV2(DiffusionQuantConfig(bit_width=8)).quantize_diffusion_model(source, tmp_path / "out")
    assert ArrowQuantV2().validate_quality(source, tmp_path / "out").passed
    report = ArrowQuantV2().validate_quality(other, tmp_path / "out")
    assert not report.passed
    assert name in {t.name for t in report.failures}


def test_verify_hashes_whatever_the_model_was_opened_with(models, tmp_path):
    ArrowQuantV2().quantize_diffusion_model(models.dit, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_bytes(config.read_bytes().replace(b"{", b"[", 1))
    with open_quantized(tmp_path / "model", verify="off") as model, pytest.raises(ValidationError):
        model.verify()


def test_the_json_of_a_result_holds_its_headline_figures(models, tmp_path):
    plan = ArrowQuantV2().plan(models.dit)
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["size_mb"] == plan.size_mb
    assert type(plan).from_dict(data) == plan
