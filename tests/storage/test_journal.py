"""The journal: torn last lines are forgotten, every other damage is an error."""

import json

import pytest

from arrowquant_nb.errors import OutputError
from arrowquant_nb.storage.journal import Commit, Journal


def commit(file="00000-a.parquet", key="k"):
    return Commit(file, 3, "0" * 32, key, {"a": {"file": file}}, {"a": {"name": "a"}})


def test_a_journal_reads_back_what_was_appended(tmp_path):
    journal = Journal(tmp_path)
    journal.append(commit())
    journal.append(commit("00001-b.parquet"))
    assert Journal(tmp_path).commits == journal.commits
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2


def test_a_later_line_for_the_same_file_wins(tmp_path):
    journal = Journal(tmp_path)
    journal.append(commit(key="old"))
    journal.append(commit(key="new"))
    assert Journal(tmp_path).commits["00000-a.parquet"].key == "new"


def test_a_torn_last_line_is_ignored_at_every_cut_and_the_next_line_is_whole(tmp_path):
    Journal(tmp_path).append(commit())
    first = (tmp_path / "journal.jsonl").read_bytes()
    Journal(tmp_path).append(commit("00001-b.parquet"))
    both = (tmp_path / "journal.jsonl").read_bytes()
    for cut in range(len(first), len(both), 7):
        (tmp_path / "journal.jsonl").write_bytes(both[:cut])
        journal = Journal(tmp_path)
        assert list(journal.commits) == ["00000-a.parquet"]
        journal.append(commit("00002-c.parquet"))
        assert list(Journal(tmp_path).commits) == ["00000-a.parquet", "00002-c.parquet"]


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"nonsense", b'{"file": "a"}', b"\xff\xff", b"null", b"", b"[" * 50_000]
)
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path, line):
    Journal(tmp_path).append(commit())
    whole = (tmp_path / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(OutputError, match=r"line 2"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("file", 5), ("nbytes", "x"), ("tensors", []), ("reports", None), ("key", 1), ("xxh3", [])]
)
def test_a_line_with_fields_of_the_wrong_type_is_an_error(tmp_path, field, value):
    Journal(tmp_path).append(commit())
    line = json.loads((tmp_path / "journal.jsonl").read_text()) | {field: value}
    (tmp_path / "journal.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(OutputError, match=r"line 1"):
        Journal(tmp_path)
