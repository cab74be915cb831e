"""How a layer is called where there is little room: in lists, and in what is typed to find it."""

from typing import Final

from arrowquant_nb.ui.layer_state import LayerState

__all__ = ["FALLBACK", "NAME_LENGTH", "brief_name", "list_name"]

FALLBACK: Final = "\u25b2"
NAME_LENGTH: Final = 32


def brief_name(name: str) -> str:
    """Return a layer's name without ".weight", its block by an initial: what tells layers apart is the role.

    Examples
    --------
    >>> brief_name("transformer_blocks.3.attn1.to_q.weight")
    'b3.attn1.to_q'
    >>> brief_name("single_transformer_blocks.12.proj_mlp.weight")
    'stb12.proj_mlp'
    """
    name = name.removesuffix(".weight")
    head, _, rest = name.partition(".")
    number, _, role = rest.partition(".")
    if number.isdigit() and role and head.endswith(("blocks", "layers", "block", "layer")):
        initial = "".join(part[0] for part in head.split("_")[:-1]) + "b"
        name = f"{initial if len(initial) > 2 else 'b'}{number}.{role}"
    return "".join(c if c.isprintable() else "?" for c in name)


def list_name(layer: LayerState, length: int = NAME_LENGTH) -> str:
    """Return a layer's name as the list shows it: brief, cut in the middle, marked where it fell back."""
    name = brief_name(layer.name)
    if len(name) > length:
        tail = (length - 1) // 2
        name = f"{name[: length - 1 - tail]}\u2026{name[-tail:]}"
    mark = f"{FALLBACK} " if layer.report is not None and layer.report.fell_back else ""
    return mark + name
