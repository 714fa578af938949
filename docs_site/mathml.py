r"""Formulas as MathML, made when the site is built: browsers draw it without a script or a network.

In pages ``$x$`` and ``$$ ... $$``, in docstrings ``:math:`x``` and ``.. math::``.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Return a page's HTML with its formulas as MathML.

    Args:
        html: What Markdown made of the page.

    Returns:
        The HTML.
    """
    html = _BLOCK.sub(lambda found: convert(unescape(found[1]).strip(), display="block"), html)
    return _INLINE.sub(lambda found: convert(unescape(found[1]).strip()), html)
