"""Finding a model: the bare name of a bundled sample is that sample, anything else is a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arrowquant_nb import samples
from arrowquant_nb.config.sources import did_you_mean
from arrowquant_nb.errors import ModelNotFoundError


@dataclass(frozen=True)
class LocatedModel:
    """Where a model is.

    Attributes
    ----------
    path : its folder or file.
    name : what to call it; never a path.
    argument : what finds it again: an absolute path, or the name of a bundled sample.
    """

    path: Path
    name: str
    argument: str

    @property
    def word(self) -> str:
        """Its name as a command beside it says it: never a sample's for what is none, never an option."""
        taken = self.name in samples.names() and not self.argument.startswith(SAMPLE_PREFIX)
        return f"./{self.name}" if taken or self.name.startswith("-") else self.name


SAMPLE_PREFIX = "sample:"


def locate_model(model: str | Path) -> LocatedModel:
    """Find a model: the bare name of a bundled sample is that sample, anything else a path.

    A folder that is called like a sample is written with its path, such as `./digits-dit`.

    Raises
    ------
    ModelNotFoundError
        Neither a path nor a bundled sample.
    """
    name = str(model).removeprefix(SAMPLE_PREFIX)
    if name in samples.names() and not isinstance(model, Path):
        return LocatedModel(samples.load(name), name, SAMPLE_PREFIX + name)
    if not str(model):
        raise ModelNotFoundError("the model is an empty text: give a folder, a file or the name of a bundled sample")
    path = Path(model)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{str(model)[:200]!r} cannot be looked at: {error}") from error
    if there:
        return LocatedModel(path, path.resolve().name, str(path.resolve()))
    raise ModelNotFoundError(
        f"there is no model at {str(model)!r}, and no bundled sample of that name."
        f"{did_you_mean(name, samples.names())} Give a folder or file of this machine (nothing is downloaded), or a "
        f"sample: {', '.join(samples.names())}"
    )
