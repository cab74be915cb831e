"""Activation grids, equalization and tiles: what the diffusers folder carries, and what the other targets say."""

import numpy as np

from arrowquant_nb import export_model, open_quantized
from arrowquant_nb.export.folder_reader import open_exported
from tests.runs.test_stored_equalization import (
    COLUMNS,
    EQUALIZED,
    PLAIN,
    SCALES,
    finished,  # noqa: F401 - a fixture
    metadata,
    weights,  # noqa: F401 - a fixture
)


def test_the_diffusers_folder_carries_tables_and_equalization(finished, tmp_path):  # noqa: F811
    report = export_model(finished, "diffusers", tmp_path / "out")
    assert report.not_held == ()
    folder = open_exported(tmp_path / "out")
    assert folder.settings.time_aware == metadata()[1]
    assert folder.settings.layers[EQUALIZED].equalization == "float16"
    assert folder.settings.layers[PLAIN].equalization is None
    np.testing.assert_array_equal(folder.array(f"{EQUALIZED}.equalization"), SCALES)
    with open_quantized(finished) as model:
        assert len(model[EQUALIZED].references) == 2
        for name in model:
            np.testing.assert_array_equal(folder[name].dequantize(), model[name].dequantize())


def test_other_targets_say_that_they_do_not_hold_them(finished, tmp_path):  # noqa: F811
    for target, output in (("safetensors", "floats"), ("gguf", "m.gguf"), ("comfy", "m.safetensors")):
        report = export_model(finished, target, tmp_path / output)
        assert f"activation grids per timestep of 1 layers (such as {EQUALIZED}) are not held" in report.not_held[0]
        assert report.not_held[0] in report.warnings
        entry = next(t for t in report.tensors if t.name == EQUALIZED)
        assert entry.shape[1] == COLUMNS
        assert not entry.exact or target == "safetensors"  # float32 source
        if target == "gguf":
            assert (entry.written_as, entry.reason) == ("Q8_0", "GGUF cannot hold column scales")
