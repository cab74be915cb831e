"""A button as wide as its text, which does one thing."""

from collections.abc import Callable

import ipywidgets as widgets

__all__ = ["text_button"]


def text_button(text: str, tooltip: str, on_press: Callable[[], None], *, shown: bool = True) -> widgets.Button:
    """Return a button; `tooltip` says what it does, `shown` whether it is in view."""
    layout = {"width": "auto"} if shown else {"width": "auto", "display": "none"}
    button = widgets.Button(description=text, tooltip=tooltip, layout=layout)
    button.on_click(lambda _: on_press())
    return button
