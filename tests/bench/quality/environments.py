"""One cached environment per peer, so that no peer's requirements touch another's or ours.

A path file lets each see the packages of the environment that runs the benchmark: a torch of 800 MB is not fetched
again. Its own site-packages come first. A peer that cannot be installed is a reason, not an error.
"""

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

INSTALL_S = 1800


@dataclass(frozen=True, eq=False)
class Peer:
    """A package to compare with."""

    name: str
    """Of the environment; the script is peers/NAME_types.py."""
    requirements: tuple[str, ...]
    """Installed without their own requirements, which the path file supplies."""
    source_build: tuple[str, ...] = ()
    """Requirements that are tried from source first, for this machine's instructions."""
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables of installation and runs."""


PEERS = (
    Peer(
        "ggml",
        ("libggml-python==0.20.2.post1",),
        ("libggml-python==0.20.2.post1",),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
    ),
    Peer("gguf", ("gguf==0.19.0",)),
    Peer("hqq", ("hqq==0.2.8.post1", "einops==0.8.1", "termcolor==3.1.0")),
    Peer("quanto", ("optimum-quanto==0.2.7",)),
    Peer("sdnq", ("sdnq==0.2.8",)),
    Peer("torchao", ("torchao==0.18.0",)),
    Peer("bitsandbytes", ("bitsandbytes==0.50.2",)),
)


def default_cache() -> Path:
    """Folder of the environments: $XDG_CACHE_HOME/arrowquant_nb/peers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arrowquant_nb" / "peers"


def environment(peer: Peer, cache: Path) -> tuple[Path | None, str]:
    """Return the peer's Python and how it was installed, or None and why it could not be."""
    folder = cache / peer.name
    mark = folder / "installed.json"
    ours = [p for p in sys.path if p.endswith("site-packages")]
    # What our own environment has already is not installed again, so a peer's goes with ours.
    wanted = {"requirements": list(peer.requirements), "python": sys.version, "settings": peer.settings, "shared": ours}
    if mark.is_file():
        found = json.loads(mark.read_text())
        if found["wanted"] == wanted:
            return (folder / "bin" / "python" if found["ok"] else None), found["note"]
    venv.create(folder, clear=True)  # our own pip installs into it
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text("\n".join(ours) + "\n")
    ok, note = False, ""
    for options, how in (
        *([(["--no-binary", ",".join(_names(peer.source_build))], "from source")] * bool(peer.source_build)),
        ([], "wheel"),
    ):
        ok, said = _install(python, peer, options)
        note = how if ok else said
        if ok:
            break
    mark.write_text(json.dumps({"wanted": wanted, "ok": ok, "note": note}, indent=1))
    return (python if ok else None), note


def _names(requirements: tuple[str, ...]) -> list[str]:
    return [r.partition("==")[0] for r in requirements]


def _install(python: Path, peer: Peer, options: list[str]) -> tuple[bool, str]:
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    command = [*pip, "install", "-q", "--no-deps", *options, *peer.requirements]
    surroundings = {k: v for k, v in os.environ.items() if not k.endswith("_CONSTRAINT")}  # those pin our own tests
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False, env=surroundings | peer.settings
        )
    except subprocess.TimeoutExpired:
        return False, f"the installation took more than {INSTALL_S} s"
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
    return done.returncode == 0, " ".join(lines)[:300]
