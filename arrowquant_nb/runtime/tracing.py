"""What torch's compiler is told of our functions, and what it is at work for. Knows no layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["constant_in_graphs", "is_exporting"]

P = ParamSpec("P")
R = TypeVar("R")


def constant_in_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Have `torch.compile` call a function while it traces, and keep what it returned.

    `torch.compiler.assume_constant_result` does just this, and loads torch's compiler to do so, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001
    return function


@constant_in_graphs
def is_exporting() -> bool:
    """Tell whether `torch.export` is at work; until torch 2.11 its compiler took the answer for True everywhere."""
    answer = getattr(torch.compiler, "is_exporting", None)  # of torch 2.7 and later
    return answer is not None and bool(answer())
