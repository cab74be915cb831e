"""Runs a peer's script in its environment and reads what it says."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from environments import Peer

SCRIPTS = Path(__file__).with_name("peers")
RUN_S = 1800


def answers(
    peer: Peer,
    python: Path | None,
    note: str,
    arrays: Mapping[str, np.ndarray],
    scratch: Path,
    *,
    timed: bool,
) -> Iterator[dict[str, object]]:
    """Yield a row per format and array, with the file of the decoded values; or one row with the reason why not."""
    if python is None:
        yield {"by": peer.name, "format": "-", "failed": f"not installed: {note}"}
        return
    folder = scratch / peer.name
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for number, (name, array) in enumerate(arrays.items()):
        files[name] = str(folder / f"in-{number}.npy")
        np.save(files[name], array)
    answer, request = folder / "answer.json", folder / "request.json"
    answer.unlink(missing_ok=True)
    request.write_text(json.dumps({"arrays": files, "folder": str(folder), "answer": str(answer), "timed": timed}))
    command = [str(python), str(SCRIPTS / f"{peer.name}_types.py"), str(request)]
    # The scripts import what lies beside them, which `make` forbids to tests.
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | peer.settings
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False, env=surroundings)
        failed = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["died"])[-1]
    except subprocess.TimeoutExpired:
        failed = f"took more than {RUN_S} s"
    if failed or not answer.is_file():
        yield {"by": peer.name, "format": "-", "failed": failed[:200]}
        return
    said = json.loads(answer.read_text())
    for row in said["rows"]:
        yield {"by": f"{said['version']}{' built here' if note == 'from source' else ''}", **row}
