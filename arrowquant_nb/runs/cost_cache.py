"""Measured costs kept by content: what the same rows, inputs and settings cost is measured once.

An entry holds the layers of one model and calibration, each under the hash of everything that decides its figures, and
is believed only when its own hash holds. So a changed size limit is solved again without touching the model, and an
override costs one layer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import xxhash

from arrowquant_nb.costs import LayerCosts
from arrowquant_nb.errors import OutputError
from arrowquant_nb.storage.durable import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FOLDER: Final = "costs"
LIMIT_NBYTES: Final = 64 << 20


def content_key(facts: Any) -> str:
    """Return the xxh3-128 of plain values."""
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


def read_costs(folder: Path, key: str) -> tuple[dict[str, LayerCosts], str]:
    """Return the layers of an entry by their own keys; and what was wrong with it, "" where nothing was."""
    path = folder / f"{key}.json"
    try:
        if not path.is_file():
            return {}, ""
        if path.stat().st_size > LIMIT_NBYTES:
            raise ValueError(f"it is larger than {LIMIT_NBYTES >> 20} MiB")  # noqa: TRY301 - one message for all damage
        entry = json.loads(path.read_bytes())
        if entry["hash"] != content_key([key, entry["layers"]]):
            raise ValueError("its hash does not hold")  # noqa: TRY301 - as above
        return {own: LayerCosts.from_dict(layer) for own, layer in entry["layers"].items()}, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {}, f"Damaged costs in the cache were not used, and the layers were measured again: {path}: {error}."


def write_costs(folder: Path, key: str, layers: Mapping[str, LayerCosts]) -> str:
    """Keep an entry; return why that failed, "" where it did not."""
    values = {own: layer.to_dict() for own, layer in layers.items()}
    content = json.dumps({"hash": content_key([key, values]), "layers": values}).encode()
    try:
        write_file(folder / f"{key}.json", content)
    except OutputError as error:
        return f"The measured costs are not kept for the next run: {error}."
    return ""
