"""The quality benchmark: its own grids and figures, what it computes from rows, and a peer that cannot be had."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent / "bench" / "quality"
RESULTS = FOLDER.parents[2] / "notebooks" / "05_quality.json"


@pytest.fixture(autouse=True)
def _its_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_nf4_decodes_its_own_table_exactly():
    import formulas

    table = (formulas.NF4 * 0.5).astype(np.float32)
    assert formulas.nf4(np.tile(table, 2).reshape(1, 32), 32) == pytest.approx(
        np.tile(table, 2).reshape(1, 32), abs=1e-7
    )


def test_the_k_search_is_exact_on_a_grid_and_beats_the_plain_range():
    import formulas

    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.integers(0, 16, (8, 30)), np.zeros((8, 1), int), np.full((8, 1), 15)], axis=1)
    grid = (codes * 0.25 - 1.5).astype(np.float32)
    assert np.array_equal(formulas.k_search(grid, 4, 32), grid)
    weight = rng.standard_t(5, (64, 128)).astype(np.float32)
    x = weight.reshape(-1, 32)
    low, high = np.minimum(x.min(1, keepdims=True), 0), x.max(1, keepdims=True)
    plain = np.round((x - low) / (high - low) * 3) * (high - low) / 3 + low
    ours = np.square(formulas.k_search(weight, 2, 32) - weight).sum()
    assert ours < 0.9 * np.square(plain.reshape(weight.shape) - weight).sum()


def test_targets_are_judged_by_the_rows():
    import targets

    def row(by, label, bits, width, error):
        return {"by": by, "format": label, "bits": bits, "bits_per_weight": width, "relative_error": error}

    rows = [row("arrowquant_nb", "a hadamard", 4, 4.5, 0.07), row("arrowquant_nb", "b", 4, 4.5, 0.09)]
    found = {r["what"]: r for r in targets.rows({"matrix": {"rows": [*rows, row("other", "c", 4, 4.5, 0.01)]}})}
    at_45 = found["heavy-tailed matrix at 4.5 bits: relative error"]
    assert (at_45["measured"], at_45["reached"], at_45["target"]) == (0.07, True, "at most 0.073")
    assert found["heavy-tailed matrix at 4.5 bits, not rotated: relative error"]["reached"] is False
    assert found["heavy-tailed matrix at 2.63 bits: relative error"]["measured"] is None


def test_a_peer_that_cannot_be_installed_is_a_row_with_the_reason(tmp_path):
    import environments
    import peer_runs

    peer = environments.Peer("absent", ("arrowquant-nb-absent @ file:///nowhere/absent.whl",))
    python, note = environments.environment(peer, tmp_path)
    assert python is None
    assert environments.environment(peer, tmp_path) == (None, note)
    (row,) = peer_runs.answers(peer, python, note, {}, tmp_path, timed=False)
    assert row["failed"].startswith("not installed: ")


def test_a_peers_script_finds_what_lies_beside_it_though_make_forbids_that_to_tests(tmp_path, monkeypatch):
    import environments
    import peer_runs

    (tmp_path / "beside.py").write_text("ANSWER = 'peer 1'\n")
    (tmp_path / "mine_types.py").write_text(
        "import json, sys, beside\n"
        "request = json.load(open(sys.argv[1]))\n"
        "json.dump({'version': beside.ANSWER, 'rows': [{'format': 'good'}]}, open(request['answer'], 'w'))\n"
    )
    monkeypatch.setattr(peer_runs, "SCRIPTS", tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    peer = environments.Peer("mine", ())
    rows = list(peer_runs.answers(peer, Path(sys.executable), "", {}, tmp_path / "scratch", timed=False))
    assert rows == [{"by": "peer 1", "format": "good"}]


def test_a_format_that_fails_is_a_row_and_the_others_go_on(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from protocol import Format, serve\n"
        "def refuse(_): raise RuntimeError('no such type')\n"
        "serve('peer 1', [Format('bad', 4, refuse, None, None),\n"
        "    Format('good', 4, lambda w: w, lambda s, w: s, lambda s, w: 32.0)])\n"
    )
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    request = {"arrays": {"a": str(tmp_path / "a.npy")}, "folder": str(tmp_path), "timed": True}
    (tmp_path / "request.json").write_text(json.dumps(request | {"answer": str(tmp_path / "answer.json")}))
    environment = {"PYTHONPATH": str(FOLDER / "peers")}
    subprocess.run([sys.executable, str(script), str(tmp_path / "request.json")], check=True, env=environment)
    bad, good = json.loads((tmp_path / "answer.json").read_text())["rows"]
    assert bad["failed"] == "RuntimeError: no such type"
    assert np.array_equal(np.load(good["file"]), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_committed_results_say_where_and_when_and_hold_every_target():
    import targets

    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    for section, part in content.items():
        if section != "targets":
            assert {"date", "machine", "versions", "calibration_seeds", "evaluation_seed"} <= set(part["about"])
    assert [r["what"] for r in content["targets"]["rows"]] == [r["what"] for r in targets.rows(content)]
