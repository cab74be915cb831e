"""Shard indexes and links that try to leave the model folder."""

import numpy as np
import pytest

from arrowquant_nb.errors import CheckpointError, MetadataError
from arrowquant_nb.storage.checkpoint import open_checkpoint


@pytest.fixture
def sharded(tmp_path, write, write_json):
    root = tmp_path / "model"
    write(root / "one.safetensors", {"a.weight": np.ones((2, 2), np.float32)})
    write(root / "two.safetensors", {"b.weight": np.ones((2, 2), np.float32)})

    def index(weight_map):
        write_json(root / "model.safetensors.index.json", {"weight_map": weight_map})
        return root

    return index


def test_a_good_index_opens(sharded):
    assert list(open_checkpoint(sharded({"a.weight": "one.safetensors", "b.weight": "two.safetensors"})).entries) == [
        "a.weight",
        "b.weight",
    ]


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors",
        "/etc/passwd",
        "sub/one.safetensors",
        "..",
        ".",
        "",
        "a\0.safetensors",
        "..\\x.safetensors",
        "config.json",
    ],
)
def test_an_index_may_only_name_files_beside_it(sharded, file):
    (sharded({}).parent / "x.safetensors").write_bytes(b"secret")
    with pytest.raises(CheckpointError, match=r"is not a plain \.safetensors file name"):
        open_checkpoint(sharded({"a.weight": file}))


def test_faulty_indexes(sharded, write):
    root = sharded({"a.weight": "three.safetensors"})
    with pytest.raises(CheckpointError, match=r"the shard 'three\.safetensors' is missing"):
        open_checkpoint(root)
    with pytest.raises(
        CheckpointError, match=r"'One\.safetensors' is missing \(there is 'one\.safetensors', which differs in case"
    ):
        open_checkpoint(sharded({"a.weight": "One.safetensors"}))
    with pytest.raises(CheckpointError, match="which differ only in case"):
        open_checkpoint(sharded({"a.weight": "one.safetensors", "b.weight": "ONE.safetensors"}))
    with pytest.raises(
        CheckpointError, match=r"one\.safetensors: the index lists 'c\.weight' there, but the file does not"
    ):
        open_checkpoint(sharded({"a.weight": "one.safetensors", "c.weight": "one.safetensors"}))
    with pytest.raises(CheckpointError, match=r"one\.safetensors: holds 'a\.weight', which the index places in 'two"):
        open_checkpoint(sharded({"a.weight": "two.safetensors", "b.weight": "one.safetensors"}))
    with pytest.raises(CheckpointError, match=r"has no weight_map"):
        open_checkpoint(sharded({}))
    with pytest.raises(CheckpointError, match="must be a name, found int"):
        open_checkpoint(sharded({"a.weight": 5}))
    write(root / "two.safetensors", {"a.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"'a\.weight' lies in two shards"):
        open_checkpoint(sharded({"a.weight": "one.safetensors", "b.weight": "two.safetensors"}))


def test_a_deep_or_doubled_index_is_refused(tmp_path, write):
    write(tmp_path / "model-00001-of-00001.safetensors", {"a": np.ones(1, np.float32)})
    index = tmp_path / "model.safetensors.index.json"
    for text, message in (
        ('{"weight_map": {"a": "x", "a": "y"}}', "the key 'a' stands twice"),
        ("[" * 5000, "nested deeper"),
        ('{"weight_map": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\udcff", "not valid JSON"),
    ):
        index.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(MetadataError, match=message):
            open_checkpoint(tmp_path)


def test_links_out_of_the_model_are_refused(tmp_path, write, write_json):
    outside = write(tmp_path / "outside.safetensors", {"a": np.ones(1, np.float32)})
    secret = write_json(tmp_path / "secret.json", {"a": 1})
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads outside the model folder"):
        open_checkpoint(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(outside.read_bytes())
    open_checkpoint(model)
    (model / "tokenizer.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: leads outside the model folder"):
        open_checkpoint(model)
    (model / "tokenizer.json").unlink()
    (model / "config.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(CheckpointError, match=r"'config\.json' is missing or links to nothing"):
        open_checkpoint(model)


def test_a_component_that_links_out_of_the_pipeline_is_refused(tmp_path, write, write_json):
    write(tmp_path / "other" / "model.safetensors", {"a": np.ones(1, np.float32)})
    write_json(tmp_path / "pipe" / "model_index.json", {"_class_name": "X", "unet": ["a", "b"]})
    (tmp_path / "pipe" / "unet").symlink_to(tmp_path / "other")
    with pytest.raises(CheckpointError, match="leads outside the model folder"):
        open_checkpoint(tmp_path / "pipe")


def test_links_inside_and_a_link_to_the_whole_model_are_fine(tmp_path, write):
    write(tmp_path / "model" / "real.bin0", {"a": np.ones(1, np.float32)})
    (tmp_path / "model" / "model.safetensors").symlink_to("real.bin0")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert list(open_checkpoint(tmp_path / "link").entries) == ["a"]


def test_the_hugging_face_cache_layout_opens_and_only_its_own_blobs_count(tmp_path, write, write_json):
    repo = tmp_path / "hub" / "models--org--DiffuCoder-7B"
    blob = write(repo / "blobs" / "0123abcd", {"a": np.ones(1, np.float32)})
    snapshot = repo / "snapshots" / "deadbeef"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123abcd")
    write_json(repo / "blobs" / "cfg", {"model_type": "Dream"})
    (snapshot / "config.json").symlink_to("../../blobs/cfg")
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.read_rows("a", 0, 1).tolist() == [[1.0]]
    assert "DiffuCoder" in checkpoint.modality_evidence.model_name
    foreign = write(tmp_path / "hub" / "models--org--other" / "blobs" / "ff", {"a": np.ones(1, np.float32)})
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(foreign)
    with pytest.raises(CheckpointError, match="leads outside"):
        open_checkpoint(snapshot)
    blob.unlink()


def test_a_blobs_folder_that_is_itself_a_link_gives_no_access(tmp_path, write):
    write(tmp_path / "private" / "secret", {"a": np.ones(1, np.float32)})
    repo = tmp_path / "models--evil--model"
    (repo / "snapshots" / "r").mkdir(parents=True)
    (repo / "blobs").symlink_to(tmp_path / "private")
    (repo / "snapshots" / "r" / "model.safetensors").symlink_to("../../blobs/secret")
    with pytest.raises(CheckpointError, match="leads outside"):
        open_checkpoint(repo / "snapshots" / "r")
