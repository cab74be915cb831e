"""A model folder and the paths that may be read through it.

Every file that is read or copied is resolved first and must lie inside the model folder; the one
exception is the layout of the Hugging Face cache, where `snapshots/REVISION/file` links into the
`blobs` folder of the same repository. Knows file names and JSON, no tensors.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from arrowquant_nb.errors import CheckpointError, ConfigurationError, ModelNotFoundError
from arrowquant_nb.storage.json_file import read_json_object, text_field
from arrowquant_nb.storage.safetensors_file import quoted, stamp_of

DENOISERS = ("transformer", "unet")
MAX_METADATA_NBYTES = 128 << 20  # a tokenizer.json of a large vocabulary is 10 to 40 MB
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ROOT_FILES = re.compile(
    r"config\.json|metadata\.json|generation_config\.json|scheduler_config\.json|preprocessor_config\.json"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|chat_template\.(json|jinja)|spiece\.model|tokenizer\.model"
)
_SUPPORT_FOLDERS = re.compile(r"scheduler|tokenizer(_\d)?")


@dataclass(frozen=True)
class SourceFolder:
    """A folder that is read as a model, with the real folders its files may lie in."""

    path: Path
    """The folder as the user gave it."""
    allowed: tuple[Path, ...]
    """Resolved folders: the folder itself and, in the Hugging Face cache, the blobs of the same repository."""

    @classmethod
    def at(cls, path: Path, inside: "SourceFolder | None" = None) -> "SourceFolder":
        """Open a folder; with `inside`, a sub-folder that may use the files of its parent.

        Raises
        ------
        ModelNotFoundError
            There is no such folder.
        CheckpointError
            It is a link that leaves the parent.
        """
        if not path.is_dir():
            raise ModelNotFoundError(f"{path}: no such folder")
        resolved = path.resolve()
        if inside is not None:
            if not any(resolved.is_relative_to(folder) for folder in inside.allowed):
                raise _outside(path, resolved)
            return cls(path, inside.allowed)
        parents = (*(Path.cwd() / path).parents, *resolved.parents)
        blobs = {
            parent.parent / "blobs"
            for parent in parents
            if parent.name == "snapshots" and parent.parent.name.startswith("models--")
        }
        real = sorted(folder.resolve() for folder in blobs if folder.is_dir() and not folder.is_symlink())
        return cls(path, (resolved, *real))

    def names(self) -> list[str]:
        """Names of everything directly inside, sorted."""
        try:
            return sorted(found.name for found in self.path.iterdir())
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be listed ({error.strerror}); check its permissions") from error

    def file(self, name: str) -> Path:
        """Return the path of a regular file inside; a link that leaves the model is a CheckpointError."""
        path = self.path / name
        try:
            resolved = path.resolve(strict=True)
        except FileNotFoundError as error:
            near = get_close_matches(name[:256], self.names(), 3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise CheckpointError(
                f"{self.path}: {quoted(name)} is missing or links to nothing{hint} Download the model again"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: {quoted(name)} cannot be resolved ({error})") from error
        if not any(resolved.is_relative_to(folder) for folder in self.allowed):
            raise _outside(path, resolved)
        stamp_of(path)
        return path

    def json(self, name: str) -> Mapping[str, object] | None:
        """Read a JSON object of at most 1 MiB inside the folder; None when there is no such file."""
        return read_json_object(self.file(name)) if os.path.lexists(self.path / name) else None

    def support_files(self) -> list[tuple[Path, str]]:
        """List configuration, scheduler and tokenizer files as (source, relative target name); never code."""
        found = []
        for name in self.names():
            if _ROOT_FILES.fullmatch(name) and not (self.path / name).is_dir():
                found.append((self.small_file(name), name))
            elif _SUPPORT_FOLDERS.fullmatch(name) and (self.path / name).is_dir():
                inner = SourceFolder.at(self.path / name, inside=self)
                kept = [n for n in inner.names() if _ROOT_FILES.fullmatch(n) and not (inner.path / n).is_dir()]
                found += [(inner.small_file(n), f"{name}/{n}") for n in kept]
        return found

    def small_file(self, name: str) -> Path:
        """Return the path of a file inside that is small enough to be copied as configuration."""
        path = self.file(name)
        size = stamp_of(path).size
        if size > MAX_METADATA_NBYTES:
            raise CheckpointError(f"{path}: {size:,} bytes are too many for a configuration or tokenizer file")
        return path


def choose_component(pipeline: SourceFolder, index: Mapping[str, object], component: str | None) -> str:
    """Return the name of the component folder to quantize.

    Parameters
    ----------
    pipeline : SourceFolder
        The folder that holds `model_index.json`.
    index : mapping
        That file.
    component : str or None
        The user's choice; None takes `transformer`, else `unet`.

    Raises
    ------
    ConfigurationError
        No such component, or no denoiser to choose by default; the message lists the components.
    """
    listed = [
        name
        for name in index
        if _PLAIN_NAME.fullmatch(name) and not name.startswith("_") and (pipeline.path / name).is_dir()
    ]
    if component is None:
        for name in DENOISERS:
            if name in listed:
                return name
        problem = "has neither a transformer nor a unet"
    elif component in listed:
        return component
    else:
        problem = f"has no component {quoted(component)}"
    raise ConfigurationError(
        f"{pipeline.path}: this pipeline {problem}; choose with component= one of: {', '.join(listed) or 'none'}"
    )


def pipeline_class(folder: SourceFolder) -> str | None:
    """Return `_class_name` of `model_index.json`, None when there is none."""
    index = folder.json("model_index.json")
    return None if index is None else text_field(index, "_class_name", folder.path / "model_index.json")


def model_name(path: Path, config: Mapping[str, object]) -> str:
    """Return the best name of a model: repository or folder name, and `_name_or_path` of its config."""
    absolute = Path.cwd() / path
    names = [part for part in absolute.parts if part.startswith("models--")][-1:] or [absolute.name]
    named = config.get("_name_or_path")
    return " ".join([*names, named] if isinstance(named, str) and named else names)


def _outside(path: Path, resolved: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: leads outside the model folder, to {resolved}; copy the file into the folder (only links into the "
        "blobs of the same Hugging Face cache repository are followed)"
    )
