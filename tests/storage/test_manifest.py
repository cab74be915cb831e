"""The manifest: sealed, versioned, and never trusted further than its hash."""

import hashlib
import json
import shutil

import pytest

from arrowquant_nb import ArrowQuantError, MetadataError, ModelNotFoundError, ValidationError, open_quantized
from arrowquant_nb.storage.manifest import Manifest, read_manifest

LAYER = "transformer_blocks.0.attn1.to_q.weight"


def reseal(folder, change):
    """Edit the manifest and seal it again, as an attacker or a buggy tool would."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    value.pop("sha256")
    change(value)
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    value["sha256"] = hashlib.sha256(body).hexdigest()
    path.write_text(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


@pytest.fixture
def copy(models, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(models.quantized("dit"), target)
    return target


def test_a_manifest_reads_back_equal(tmp_path):
    written = Manifest({"name": "é\n"}, {"a": {"file": "x"}}, {"x": {"nbytes": 1}})
    (tmp_path / "manifest.json").write_bytes(written.encode())
    assert read_manifest(tmp_path) == written


def test_the_seal_is_the_sha256_of_the_rest():
    value = json.loads(Manifest({}, {}, {}).encode())
    seal = value.pop("sha256")
    assert seal == hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def test_every_file_but_the_records_of_the_run_is_in_the_manifest(models):
    folder = models.quantized("dit")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert there - set(read_manifest(folder).files) == {
        "manifest.json",
        "run.json",
        "events.jsonl",
        "journal.jsonl",
        ".lock",
    }


@pytest.mark.parametrize(
    ("old", "new"), [(b'"image"', b'"audio"'), (b'"bit_width":4', b'"bit_width":8'), (b"2.1", b"2.2")]
)
def test_an_edited_manifest_does_not_match_its_own_hash(copy, old, new):
    raw = (copy / "manifest.json").read_bytes()
    assert old in raw
    (copy / "manifest.json").write_bytes(raw.replace(old, new, 1))
    with pytest.raises(ValidationError, match="SHA-256"):
        open_quantized(copy)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b'{"format": "other"}', b"\xff\xfe", b'{"format":' * 50_000, b"9" * 10_000],
)
def test_a_damaged_manifest_is_a_validation_error(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(ValidationError, match=r"manifest\.json"):
        open_quantized(copy)


def test_a_newer_major_version_is_refused_with_the_fix(copy):
    reseal(copy, lambda m: m.update(schema_version="3.0"))
    with pytest.raises(MetadataError, match="update"):
        open_quantized(copy)


def test_a_folder_without_manifest_says_what_to_do(tmp_path):
    with pytest.raises(ModelNotFoundError, match="not a model folder"):
        open_quantized(tmp_path)
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(ModelNotFoundError, match="resume"):
        open_quantized(tmp_path)
    with pytest.raises(ModelNotFoundError):
        open_quantized(tmp_path / "nowhere")


def _entry(key, value):
    return lambda m: m["tensors"][LAYER].update({key: value})


def _tile(key, value):
    return lambda m: m["tensors"][LAYER]["tiles"][0].update({key: value})


def _file(**values):
    return lambda m: m["files"][m["tensors"][LAYER]["file"]].update(values)


RESEALED = {
    "shape too long": _entry("shape", [128, 129]),
    "shape too short": _entry("shape", [127, 128]),
    "more rows": _entry("shape", [256, 128]),
    "negative shape": _entry("shape", [-128, -128]),
    "huge shape": _entry("shape", [1 << 40, 1 << 40]),
    "zero shape": _entry("shape", [0, 128]),
    "shape no list": _entry("shape", "x"),
    "other width": _entry("bit_width", 8),
    "unknown width": _entry("bit_width", 3),
    "kept width": _entry("bit_width", 16),
    "group 0": _entry("group_size", 0),
    "group 64": _entry("group_size", 64),
    "negative group": _entry("group_size", -64),
    "other grid": _entry("grid", "zero_point"),
    "unknown grid": _entry("grid", "cubic"),
    "unknown dtype": _entry("dtype", "complex64"),
    "no tiles": _entry("tiles", []),
    "tiles no list": _entry("tiles", 5),
    "tile twice": lambda m: m["tensors"][LAYER]["tiles"].append(m["tensors"][LAYER]["tiles"][0]),
    "fewer rows": _tile("rows", [0, 64]),
    "rows shifted": _tile("rows", [64, 128]),
    "rows negative": _tile("rows", [0, -128]),
    "rows half": _tile("rows", [0]),
    "data short": _tile("data", [356, 4096]),
    "data negative": _tile("data", [356, -1]),
    "scales short": _tile("scales", [8585, 2]),
    "no scales": lambda m: m["tensors"][LAYER]["tiles"][0].pop("scales"),
    "no zero points": lambda m: m["tensors"][LAYER]["tiles"][0].pop("zero_points"),
    "no data": lambda m: m["tensors"][LAYER]["tiles"][0].pop("data"),
    "file outside": _entry("file", "../../etc/passwd"),
    "absolute file": _entry("file", "/etc/passwd"),
    "file of another tensor": lambda m: m["tensors"][LAYER].update(file=next(f for f in m["files"] if "to_v" in f)),
    "file not listed": _entry("file", "x.parquet"),
    "file no string": _entry("file", None),
    "wrong size": _file(nbytes=1),
    "wrong hash": _file(xxh3="0" * 32),
    "no hash": lambda m: m["files"].update({m["tensors"][LAYER]["file"]: {}}),
    "files entry no dict": lambda m: m["files"].update({m["tensors"][LAYER]["file"]: 5}),
    "entry no dict": lambda m: m["tensors"].update({LAYER: []}),
}


@pytest.mark.parametrize("label", RESEALED)
def test_a_resealed_lie_is_refused_before_wrong_numbers_come_out(copy, label):
    reseal(copy, RESEALED[label])
    with pytest.raises(ArrowQuantError), open_quantized(copy) as model:
        model.dequantize(LAYER)


@pytest.mark.parametrize("shift", [-(1 << 62), -8192, -4, -1, 1, 64, 1 << 20, 1 << 62])
@pytest.mark.parametrize("column", ["data", "scales", "zero_points"])
def test_a_payload_that_is_not_where_the_manifest_says_is_read_through_parquet(copy, models, column, shift):
    def change(manifest):
        manifest["tensors"][LAYER]["tiles"][0][column][0] += shift

    reseal(copy, change)
    with open_quantized(models.quantized("dit")) as good, open_quantized(copy) as bad:
        assert (bad.dequantize(LAYER) == good.dequantize(LAYER)).all()


@pytest.mark.parametrize("key", ["config", "modality"])
def test_a_manifest_without_its_facts_is_a_metadata_error(copy, key):
    reseal(copy, lambda m: m["model"].pop(key))
    with pytest.raises(MetadataError):
        open_quantized(copy)
