"""An output that appears whole or not at all: written beside its place under a temporary name, then renamed.

Knows paths; nothing of what is written.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from arrowquant_nb.errors import OutputError
from arrowquant_nb.fsync import fsync_path
from arrowquant_nb.storage.durable import as_output_error, publish, real_path, temporary_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["RECORD_NAME", "check_output", "staged_file", "staged_folder"]

RECORD_NAME = "export.json"
"""The report of an export, in the folder that it wrote; only a folder that has it may be overwritten."""


def check_output(output: Path, source: Path, suffix: str, overwrite: bool) -> None:
    """Raise OutputError unless `output` can be written.

    Parameters
    ----------
    output : where the export goes.
    source : the quantized model; nothing may be written inside it.
    suffix : what a file's name must end with, such as ".gguf"; "" when the output is a folder.
    overwrite : replace an earlier file, or an earlier export's folder.
    """
    if "\0" in str(output) or not output.name or len(output.name.encode()) > 255:
        raise OutputError(f"{str(output)[:200]!r} is no name for an output: choose another one")
    place, origin = real_path(output), real_path(source)
    if place.is_relative_to(origin) or origin.is_relative_to(place):
        raise OutputError(f"the output {output} and the model {source} lie inside one another: choose another place")
    if suffix and not output.name.endswith(suffix):
        raise OutputError(f"the output {output} must end in {suffix}: this target writes one file")
    if not output.exists() and not output.is_symlink():
        return
    if not suffix and output.is_dir() and not any(output.iterdir()):
        return
    if suffix and not output.is_file():
        raise OutputError(f"the output {output} is there and not a file: choose another one")
    if not suffix and not (output / RECORD_NAME).is_file():
        raise OutputError(f"the output {output} is neither empty nor an earlier export: choose another folder")
    if not overwrite:
        raise OutputError(f"the output {output} exists: choose another one, or pass overwrite=True (--overwrite)")


@contextlib.contextmanager
def staged_file(output: Path) -> Iterator[Path]:
    """Give a temporary path beside `output`; what is written there gets its name when the block ends well."""
    temporary = temporary_path(output.parent)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        publish(temporary, output)
    except OSError as error:
        raise as_output_error(error, output) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside `output` that takes its place, and that of an earlier export, at the end."""
    temporary, earlier = temporary_path(output.parent), temporary_path(output.parent)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if output.exists():
            output.rename(earlier)
        try:
            temporary.rename(output)
        except OSError:
            if earlier.exists():
                earlier.rename(output)
            raise
        fsync_path(output.parent)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        raise as_output_error(error, output) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
