"""Docstrings as Markdown: roles of reStructuredText as code, formulas and examples as the site draws them."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc|obj):`~?([^`]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_DISPLAY = re.compile(r"^( *)\.\. math:: *(.*\n(?:\n|\1 +.*\n?)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)>>> .*\n?(?:\1(?! *$).*\n?)*", re.MULTILINE)


def as_markdown(text: str) -> str:
    """Return a docstring in Markdown.

    >>> as_markdown("See :func:`~steerscope.train`, of :math:`O(n)`.")
    'See `train`, of $O(n)$.'
    """
    text = _ROLE.sub(lambda found: f"`{found[1].rsplit('.', 1)[-1]}`", text)
    text = _MATH.sub(lambda found: f"${found[1]}$", text)
    text = _DISPLAY.sub(_display, text)
    text = _EXAMPLE.sub(_example, text)
    return text.replace("``", "`")


def _display(found: re.Match[str]) -> str:
    body = textwrap.dedent(found[2]).strip()
    return textwrap.indent(f"\n$$\n{body}\n$$\n\n", found[1], lambda line: bool(line.strip()))


def _example(found: re.Match[str]) -> str:
    body = textwrap.dedent(found[0]).strip()
    fence = "`" * 3
    # Double, since what stands for code in reStructuredText becomes single at the end.
    return textwrap.indent(f"{fence}pycon\n{body}\n{fence}\n", found[1]).replace(fence, "\0")


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring.

        Args:
            obj: What has it.
        """
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value).replace("\0", "`" * 3)
