"""Small JSON files beside the weights, read with a bound on size and depth.

Knows nothing about what the files mean. A key that stands twice is an error: which of the two a
reader takes is anybody's guess.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from arrowquant_nb.errors import MetadataError

MAX_JSON_NBYTES = 1 << 20
MAX_JSON_DEPTH = 32
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)


class DuplicateKeyError(ValueError):
    """One JSON object names a key twice; carries the key."""


def reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a dict from the pairs of one JSON object (an `object_pairs_hook`)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return found


def read_json_object(
    path: Path, max_nbytes: int = MAX_JSON_NBYTES, max_depth: int = MAX_JSON_DEPTH
) -> Mapping[str, object]:
    """Read a JSON file whose top level is an object.

    Parameters
    ----------
    path : Path
        The file; must exist.
    max_nbytes, max_depth : int
        Larger or deeper input is refused before it is parsed.

    Raises
    ------
    MetadataError
        Unreadable, too large, too deep, not UTF-8, not JSON, not an object, or a key that stands twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_nbytes + 1)
    except OSError as error:
        raise MetadataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    if len(data) > max_nbytes:
        raise MetadataError(f"{path}: larger than the {max_nbytes:,} bytes allowed for this file; is it really JSON?")
    if _depth(data) > max_depth:
        raise MetadataError(f"{path}: nested deeper than {max_depth} levels; no model file of this kind is")
    try:
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=reject_duplicate_keys)
    except DuplicateKeyError as error:
        raise MetadataError(f"{path}: the key {str(error)[:80]!r} stands twice in one object; keep one") from error
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: not valid JSON ({str(error)[:200]}); fix it or download it again") from error
    if not isinstance(found, dict):
        raise MetadataError(f"{path}: the top level must be a JSON object, found {type(found).__name__}")
    return found


def text_field(fields: Mapping[str, object], key: str, path: Path) -> str | None:
    """Return a string field, None when it is absent or null; any other type is a MetadataError."""
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return value
    raise MetadataError(f"{path}: {key} must be a string, found {type(value).__name__} {str(value)[:80]!r}")


def _depth(data: bytes) -> int:
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        token = match.group()
        if token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"]}":
            depth -= 1
    return deepest
