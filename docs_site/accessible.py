"""Names for what the theme leaves without one: a screen reader says them, and checkers ask for them."""

from __future__ import annotations

from typing import Any

NAMED = {
    '<input class="md-toggle" data-md-toggle="drawer"': ' aria-label="Navigation"',
    '<input class="md-toggle" data-md-toggle="search"': ' aria-label="Search"',
    '<div class="md-search" data-md-component="search" role="dialog"': ' aria-label="Search"',
}


def on_post_page(output: str, **_: Any) -> str:
    """Return a page with these elements named.

    Args:
        output: The page as it is written.

    Returns:
        The same page; a theme that names them itself, or writes them otherwise, is left as it is.
    """
    for element, name in NAMED.items():
        output = output.replace(f"{element}", f"{element}{name}")
    return output
