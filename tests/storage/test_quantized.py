"""An opened model: a mapping of lazy tensors that never hands out numbers from damaged bytes."""

import json
import mmap
import random
import shutil
import time

import numpy as np
import pytest

from arrowquant_nb import (
    ArrowQuantError,
    ConfigurationError,
    MetadataError,
    ParquetV2Extended,
    ShapeMismatchError,
    ValidationError,
    open_checkpoint,
    open_quantized,
    quantize_tensor,
)

LAYER = "transformer_blocks.0.attn1.to_q.weight"
KEPT = "proj_out_2.weight"


@pytest.fixture
def model(models):
    with open_quantized(models.quantized("dit", scale_format="float16", group_size=64)) as opened:
        yield opened


@pytest.fixture
def copy(models, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(models.quantized("dit"), target)
    return target


def values(folder, verify="lazy"):
    with open_quantized(folder, verify) as model:
        return {name: np.array(model.dequantize(name)).tobytes() for name in model}


def owner(array):
    """Return what holds the memory of an array in the end."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def test_a_model_is_a_read_only_mapping_in_checkpoint_order(models, model):
    with open_checkpoint(models.dit) as checkpoint:
        assert list(model) == list(checkpoint.entries)
    assert len(model) == len(list(model))
    assert LAYER in model
    assert "nowhere" not in model
    assert dict(model.items())[LAYER] is model[LAYER]
    with pytest.raises(KeyError):
        model["nowhere"]
    with pytest.raises(TypeError):
        model[LAYER] = None
    assert model.modality == "image"
    assert model.config.bit_width == 4


def test_mapped_payloads_are_views_of_the_file_and_equal_what_parquet_reads(model):
    n_compared = 0
    for name in model:
        if model[name].kept:
            continue
        rows = {r["row_start"]: r for r in ParquetV2Extended(model.path / model[name].file).rows(name)}
        for start, tile in model[name].tiles():
            for array, column in ((tile.packed, "data"), (tile.scales, "scales"), (tile.zero_points, "zero_points")):
                assert isinstance(owner(array), mmap.mmap)
                assert not array.flags.writeable
                assert array.tobytes() == rows[start][column]
                n_compared += 1
    assert n_compared == 3 * 18


def test_stored_values_are_those_of_quantizing_the_source_tensor(models, model):
    with open_checkpoint(models.dit) as checkpoint:
        for name in model:
            if model[name].kept:
                continue
            entry = checkpoint.entries[name]
            weight = checkpoint.read_rows(name, 0, entry.rows).reshape(entry.shape)
            expected = quantize_tensor(weight, model[name].bit_width, 64, "uls")
            np.testing.assert_array_equal(model.dequantize(name), expected.dequantize())


def test_kept_tensors_come_back_bit_for_bit(models, model):
    with open_checkpoint(models.dit) as checkpoint:
        kept = [n for n in model if model[n].kept]
        assert {KEPT, "nothing", "step", "position_ids"} <= set(kept)
        for name in kept:
            assert bytes(model[name].bytes_view()) == checkpoint.read_bytes(name).tobytes()
            assert model.dequantize(name).shape == checkpoint.entries[name].shape
            assert str(model.dequantize(name).dtype) == checkpoint.entries[name].dtype


def test_payload_bytes_are_exactly_what_bits_per_weight_says(model):
    for tensor in model.values():
        payload = sum(
            len(r[c])
            for r in ParquetV2Extended(model.path / tensor.file).rows(tensor.name)
            for c in ("data", "scales", "zero_points")
            if r[c]
        )
        assert payload == tensor.nbytes
        assert tensor.bits_per_weight == (8 * payload / tensor.n_weights if tensor.n_weights else 0)
    # By hand: 128 columns at 4 bits are 64 bytes a row; two groups of 64 with a float16 scale and minimum are 8 more.
    assert model[LAYER].nbytes == 128 * (64 + 8)
    assert model[LAYER].bits_per_weight == 4.5


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dequantize_fills_a_given_buffer_of_any_float_dtype(model, dtype):
    plain = model.dequantize(LAYER, dtype)
    assert str(plain.dtype) == dtype
    out = np.full_like(plain, np.nan)
    assert model.dequantize(LAYER, dtype, out=out) is out
    assert out.tobytes() == plain.tobytes()
    kept = model.dequantize(KEPT, dtype)
    assert str(kept.dtype) == dtype


def test_arrays_are_made_on_request_and_by_numpy_itself(model):
    np.testing.assert_array_equal(np.asarray(model[LAYER]), model.dequantize(LAYER))
    assert np.asarray(model[LAYER], dtype=np.float64).dtype == np.float64
    assert {n: w.shape for n, w in model.weights().items()} == {n: t.shape for n, t in model.items()}


@pytest.mark.parametrize(
    "out",
    [np.empty((128, 127), np.float32), np.empty((128, 128), np.float16), np.empty((128, 256), np.float32)[:, ::2]],
)
@pytest.mark.parametrize("name", [LAYER])
def test_a_buffer_that_does_not_fit_is_refused(model, name, out):
    with pytest.raises(ShapeMismatchError, match="out"):
        model.dequantize(name, out=out)


def test_a_read_only_buffer_is_refused(model):
    out = np.zeros((128, 128), np.float32)
    out.flags.writeable = False
    with pytest.raises(ShapeMismatchError):
        model.dequantize(LAYER, out=out)
    kept = np.zeros((16, 128), np.float16)
    kept.flags.writeable = False
    with pytest.raises(ShapeMismatchError):
        model.dequantize(KEPT, out=kept)


def test_an_unknown_dtype_is_refused(model):
    for name in (LAYER, KEPT):
        with pytest.raises((ConfigurationError, MetadataError, TypeError)):
            model.dequantize(name, "float7")


def test_two_opens_at_once_and_arrays_that_outlive_the_model(models):
    with open_quantized(models.quantized("dit")) as first, open_quantized(models.quantized("dit")) as second:
        view = next(first[LAYER].tiles())[1].packed
        np.testing.assert_array_equal(first.dequantize(LAYER), second.dequantize(LAYER))
    assert view.sum() > 0


def test_opening_reads_only_the_manifest(copy):
    for path in copy.iterdir():
        if path.name != "manifest.json":
            path.unlink()
    model = open_quantized(copy)
    assert len(model) == 32
    with pytest.raises(ValidationError, match="missing"):
        model.dequantize(LAYER)


def test_an_unknown_verify_mode_is_refused(models):
    with pytest.raises(ConfigurationError, match="verify"):
        open_quantized(models.quantized("dit"), verify="maybe")


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(path, position, mask=0x10):
    raw = bytearray(path.read_bytes())
    raw[position] ^= mask
    path.write_bytes(raw)


def test_lazy_checks_a_file_at_its_first_access_and_full_checks_all_now(copy):
    with open_quantized(copy) as model:
        data, other = copy / model[LAYER].file, "transformer_blocks.0.attn1.to_k.weight"
    flip(data, 400)
    with open_quantized(copy) as lazy:
        lazy.dequantize(other)
        with pytest.raises(ValidationError, match=data.name):
            lazy.dequantize(LAYER)
        with pytest.raises(ValidationError, match=data.name):
            lazy.verify()
    with pytest.raises(ValidationError, match=data.name):
        open_quantized(copy, verify="full")
    with open_quantized(copy, verify="off") as off:
        off.dequantize(LAYER)
        with pytest.raises(ValidationError):
            off.verify()


def test_a_sound_model_verifies_every_tensor(model):
    assert model.verify() == len(model)


@pytest.mark.parametrize("verify", ["lazy", "off"])
def test_a_cut_file_is_refused_even_without_hashing(copy, verify):
    with open_quantized(copy) as model:
        data = copy / model[LAYER].file
    size = data.stat().st_size
    for keep in (0, 1, 4, size // 2, size - 1):
        data.write_bytes(data.read_bytes()[:keep])
        with open_quantized(copy, verify) as model, pytest.raises(ValidationError, match=data.name):
            model.dequantize(LAYER)


@pytest.mark.parametrize("name", ["stats.parquet", "config.json", "README.md"])
def test_copied_and_derived_files_are_checked_too(copy, name):
    flip(copy / name, 5)
    with open_quantized(copy) as model, pytest.raises(ValidationError, match=name):
        model.verify()
    if name == "stats.parquet":
        with open_quantized(copy) as model, pytest.raises(ValidationError):
            model.stats()


def test_random_damage_anywhere_is_an_error_or_changes_no_number(models, copy):
    """150 seeded bit flips, overwritten runs and cuts over all files: a typed error, or the very same values."""
    good = values(copy)
    rng = random.Random(20)
    files = sorted(
        p
        for p in copy.rglob("*")
        if p.is_file() and p.name not in (".lock", "events.jsonl", "run.json", "journal.jsonl")
    )
    n_errors = 0
    for _ in range(150):
        path = rng.choice(files)
        original = path.read_bytes()
        raw = bytearray(original)
        position = rng.randrange(len(raw))
        kind = rng.randrange(4)
        if kind == 0:
            raw[position] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[position : position + 8] = rng.randbytes(len(raw[position : position + 8]))
        elif kind == 2:
            del raw[position:]
        else:
            raw[position:position] = rng.randbytes(3)
        path.write_bytes(raw)
        try:
            assert values(copy) == good
            open_quantized(copy, "full").close()
        except ArrowQuantError:
            n_errors += 1
        path.write_bytes(original)
    assert n_errors >= 145
    assert values(copy) == good


def test_footer_mutations_end_in_a_typed_error_or_in_the_same_rows(models, tmp_path):
    """The footer has no checksum of its own: without the manifest's hash only page and row hashes stand guard."""
    source = next(models.quantized("dit").glob("*to_q*.parquet"))
    raw = source.read_bytes()
    good = list(ParquetV2Extended(source).rows())
    length = int.from_bytes(raw[-8:-4], "little")
    rng = random.Random(21)
    path = tmp_path / "a.parquet"
    n_refused = 0
    for _ in range(150):
        mutated = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            mutated[
                len(raw) - 8 - rng.randrange(length) - 1 if rng.random() < 0.9 else len(raw) - rng.randrange(1, 9)
            ] = rng.randrange(256)
        path.write_bytes(mutated)
        try:
            rows = list(ParquetV2Extended(path).rows())
        except ValidationError:
            n_refused += 1
            continue
        assert [r["data"] for r in rows] == [r["data"] for r in good]
    assert n_refused > 60


def test_damaged_footers_never_crash_the_mapped_route_without_hashing(models, copy):
    with open_quantized(copy) as model:
        data = copy / model[LAYER].file
    raw = data.read_bytes()
    rng = random.Random(22)
    began = time.monotonic()
    for _ in range(30):
        data.write_bytes(raw[:-200] + rng.randbytes(192) + raw[-8:])
        with open_quantized(copy, "off") as model:
            assert model.dequantize(LAYER).shape == (128, 128)  # payloads are mapped by the manifest's offsets
            with pytest.raises(ValidationError):
                model.verify()
    assert time.monotonic() - began < 60


def test_hostile_names_in_a_manifest_do_not_leave_the_folder(copy):
    with open_quantized(copy) as model:
        for name in ("../manifest.json", "/etc/passwd", "nowhere", "manifest.json"):
            with pytest.raises(ValidationError):
                model.file_path(name)
        assert json.loads(model.file_path("config.json").read_bytes())


def test_a_file_of_many_tensors_is_mapped_and_checked_until_its_last_one_is_taken(models, copy):
    with open_quantized(copy) as model:
        file = model[KEPT].file
        shared = [name for name in model if model[name].file == file]
        assert len(shared) > 1
        held = [owner(model[name].dequantize()) for name in model.in_turn(model) if name in shared]
        assert all(mapping is held[0] for mapping in held)  # one mapping, so one check
        (copy / file).write_bytes(b"another")
        with pytest.raises(ValidationError, match=file):
            model[KEPT].dequantize()
