"""Equalized layers on disk: what was multiplied in is divided out by every reader, and the metadata come back."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import write_checkpoint

from arrowquant_nb import (
    DiffusionQuantConfig,
    ParquetV2Extended,
    SpatialQuantizer,
    SpatialQuantMetadata,
    TimeAwareQuantizer,
    ValidationError,
    open_checkpoint,
    open_quantized,
)
from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.quantizers.activation_ranges import StepRanges
from arrowquant_nb.runs.calibrating import CalibrationSource
from arrowquant_nb.runs.locating import LocatedModel
from arrowquant_nb.runs.planning import decide, make_tasks
from arrowquant_nb.runs.sink import ModelSink
from arrowquant_nb.runs.source import LayerSource
from arrowquant_nb.storage.manifest import Manifest, read_manifest
from arrowquant_nb.storage.output import ModelFolder

EQUALIZED, PLAIN = "transformer_blocks.0.ff.net.2.weight", "transformer_blocks.0.ff.net.0.proj.weight"
ROWS, COLUMNS = 128, 256
SCALES = np.exp2(np.arange(COLUMNS) % 7 - 3).astype(np.float32)


def metadata():
    """What a calibrated run would hand over for the equalized layer."""
    spatial = SpatialQuantMetadata(True, True, equalization_scales={EQUALIZED: tuple(map(float, SCALES))})
    quantizer = TimeAwareQuantizer(8, 2)
    low, high = np.float32([[-1], [-4]]), np.float32([[1], [8]])
    table = quantizer.layer_table(StepRanges.of_capture(EQUALIZED, [100, 900], low, high), COLUMNS)
    return spatial, quantizer.metadata([table])


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {
        EQUALIZED: rng.standard_normal((ROWS, COLUMNS)).astype(np.float32),
        PLAIN: rng.standard_normal((COLUMNS, ROWS)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    """A sealed model in which one layer is stored in two equalized tiles."""
    root = tmp_path_factory.mktemp("equalized")
    source = write_checkpoint(root / "source", weights)
    config = DiffusionQuantConfig(modality="image", bit_width=8, group_size=32)
    spatial, times = metadata()
    facts = {EQUALIZED: {"spatial": spatial.to_dict(), "time_aware": times.to_dict()}}
    with open_checkpoint(source) as checkpoint:
        decisions = decide(
            checkpoint, LocatedModel(source, "equalized", str(source)), config, CalibrationSource("none")
        )
        tasks = make_tasks(checkpoint, decisions, config)
        with ModelFolder(root / "model", source, 1 << 20) as folder, LayerSource(checkpoint, tasks) as reader:
            sink = ModelSink(folder, checkpoint, reader, {"modality": "image"}, facts)
            for task in tasks:
                scales = SCALES if task.name == EQUALIZED else None
                writer = sink.begin(task, 8)
                for start in range(0, task.rows, task.rows // 2):
                    part = weights[task.name][start : start + task.rows // 2]
                    tensor = SpatialQuantizer(8, 32).per_group_quantize(task.name, part, scales)
                    writer.append(start, tensor)
                writer.commit(report_of(task, tensor))
            folder.drain()
            commits = [folder.committed(file) for file in sink.files]
            files = {c.file: {"nbytes": c.nbytes, "xxh3": c.xxh3} for c in commits}
            tensors = {name: entry for c in commits for name, entry in c.tensors.items()}
            folder.seal(Manifest({"config": config.to_dict(), "modality": "image"}, tensors, files))
    return root / "model"


def report_of(task, tensor):
    return LayerReport(
        name=task.name, shape=task.shape, dtype=task.dtype, action="quantized", role=task.role, reason=task.reason,
        rule=task.rule, requested_bit_width=8, bit_width=8, method="uls", grid="minimum", group_size=32,
        n_weights=task.n_weights, source_nbytes=task.source_nbytes, nbytes=tensor.nbytes,
        sqnr_db=tensor.statistics.sqnr_db, cosine=1.0, mse=0.0, gain=1.0, w_absmax=1.0,
    )  # fmt: skip


def test_a_reader_gets_the_weights_back_without_the_scales(finished, weights):
    with open_quantized(finished, "full") as model:
        for name, weight in weights.items():
            scales = SCALES if name == EQUALIZED else np.float32(1)
            multiplied = SpatialQuantizer(8, 32).per_group_quantize(name, weight * scales).dequantize()
            np.testing.assert_array_equal(model[name].dequantize(), multiplied / scales)
            np.testing.assert_array_equal(model[name].read_rows(70, 3), multiplied[70:73] / scales)
        start, tile = next(iter(model[EQUALIZED].tiles()))
        assert start == 0
        np.testing.assert_array_equal(tile.equalization, SCALES)
        assert tile.equalization.dtype == np.float16
        assert next(iter(model[PLAIN].tiles()))[1].equalization is None


def test_every_stored_byte_is_counted(finished):
    with open_quantized(finished) as model:
        plain = 8 + 2 * 16 / 32
        assert model[PLAIN].bits_per_weight == plain
        assert model[EQUALIZED].bits_per_weight == plain + 2 * 16 / ROWS  # once for each of the two tiles


def test_the_column_and_the_metadata_stand_in_the_file(finished):
    spatial, times = metadata()
    with open_quantized(finished) as model:
        file = ParquetV2Extended(finished / model[EQUALIZED].file)
        other = ParquetV2Extended(finished / model[PLAIN].file)
    for row in file.rows(EQUALIZED):
        np.testing.assert_array_equal(np.frombuffer(row["equalization"], np.float16), SCALES)
    assert SpatialQuantMetadata.from_dict(file.metadata["spatial"]) == spatial
    assert type(times).from_dict(file.metadata["time_aware"]) == times
    assert other.metadata["spatial"] is None
    column = pq.read_table(file.path, columns=["equalization"])["equalization"]
    assert len(column[0].as_py()) == 2 * COLUMNS


def test_equalization_of_a_wrong_length_is_refused(finished, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(finished, folder)
    manifest = read_manifest(folder)
    tile = manifest.tensors[EQUALIZED]["tiles"][0]
    tile["equalization"][1] -= 2
    (folder / "manifest.json").write_bytes(manifest.encode())
    with open_quantized(folder) as model, pytest.raises(ValidationError, match="equalization of 510 bytes"):
        model[EQUALIZED].dequantize()


def test_metadata_of_a_layer_change_its_key(weights, tmp_path):
    """A run with other scales or tables does not take an earlier run's layer over."""
    source = write_checkpoint(tmp_path / "source", weights)
    config = DiffusionQuantConfig(modality="image", bit_width=8, group_size=32)
    spatial, _ = metadata()
    with open_checkpoint(source) as checkpoint:
        tasks = make_tasks(
            checkpoint,
            decide(checkpoint, LocatedModel(source, "equalized", str(source)), config, CalibrationSource("none")),
            config,
        )
        task = next(t for t in tasks if t.name == EQUALIZED)
        with ModelFolder(tmp_path / "model", source, 1 << 20) as folder, LayerSource(checkpoint, tasks) as reader:

            def sink(facts):
                return ModelSink(folder, checkpoint, reader, {"modality": "image"}, facts)

            facts = {EQUALIZED: {"spatial": spatial.to_dict()}}
            writer = sink(facts).begin(task, 8)
            tensor = SpatialQuantizer(8, 32).per_group_quantize(EQUALIZED, weights[EQUALIZED], SCALES)
            writer.append(0, tensor)
            first = sink(facts)
            first._commit(writer._file, task, report_of(task, tensor))
            folder.drain()
            assert sink(facts).reuse(task) is not None
            assert sink(None).reuse(task) is None
            other = json.loads(json.dumps(facts))
            other[EQUALIZED]["spatial"]["equalization_scales"][EQUALIZED][0] *= 2
            assert sink(other).reuse(task) is None
