"""The two ways steerscope says no, and how its sentences name options.

Every message follows one pattern: the value received, the value expected, and what to do next. A sentence that names an
option is written with a mark, ``[[batch_size]]`` or ``[[learning_rate='auto']]``: in Python it shows the name of the
field or argument, and the command line shows its own option (:func:`typed`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_MARK = re.compile(r"\[\[([a-z][a-z0-9_]*)(?:=([^\[\]]*))?\]\]")


class Words(str):
    """A sentence in which options have the names they have in Python; ``marked`` is how it was written."""

    marked: str


def words(marked: str) -> Words:
    """Return a sentence with its marks shown as Python's names.

    >>> words("[[steps]] is 0; expected at least 1."), words("add [[resume=True]]")
    ('steps is 0; expected at least 1.', 'add resume=True')
    """
    found = Words(_MARK.sub(lambda mark: mark[1] if mark[2] is None else f"{mark[1]}={mark[2]}", marked))
    found.marked = marked
    return found


def dashed(name: str, value: str | None = None) -> str:
    """Return the default spelling of a field as an option: two dashes, and dashes for underscores.

    >>> dashed("batch_size"), dashed("start", "published"), dashed("likelihoods", "False")
    ('--batch-size', '--start published', '--no-likelihoods')

    Args:
        name: Name of the field.
        value: The value to type behind it; ``True`` and ``False`` make a flag.

    Returns:
        What is typed at a command line.
    """
    option = f"--{'no-' if value == 'False' else ''}{name.replace('_', '-')}"
    return option if value in (None, "True", "False") else f"{option} {value}"


def typed(sentence: object, option: Callable[[str, str | None], str] = dashed) -> str:
    """Return a sentence, or what an error says, with options as they are typed at a command line.

    >>> typed(words("add [[resume=True]] or [[learning_rate='auto']]"))
    'add --resume or --learning-rate auto'

    Args:
        sentence: From :func:`words`, or an error of this package; anything else is shown as it is.
        option: Gives what is typed for a field, alone or with a value.

    Returns:
        The sentence without marks.
    """
    marked = getattr(sentence, "marked", None)
    if not isinstance(marked, str):
        return str(sentence)
    return _MARK.sub(lambda mark: option(mark[1], mark[2] and mark[2].strip("'")), marked)


class SteerscopeError(Exception):
    """Base class of every error steerscope raises on purpose.

    Attributes:
        marked: What it says, with marks for options; ``str()`` shows them by their names in Python.
    """

    def __init__(self, sentence: str = "") -> None:
        self.marked = sentence.marked if isinstance(sentence, Words) else sentence
        super().__init__(str(words(self.marked)))

    def __reduce__(self) -> tuple[type[SteerscopeError], tuple[str]]:
        return type(self), (self.marked,)


class InputError(SteerscopeError, ValueError):
    """What the caller passed in cannot be used; the command line turns it into exit code 2.

    Also raised where the file system refuses: a file that cannot be read, a full disk. The ``OSError`` is its cause.
    """


class UnsupportedModelError(InputError):
    """The model's blocks match no layout steerscope knows, or failed the self-check on load."""


def shortened(text: str, most: int = 60) -> str:
    """Return a text for a message, cut where it is long.

    Args:
        text: The text.
        most: Most characters.

    Returns:
        The text, or its beginning and three dots.
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def reason_of(error: BaseException, most: int = 300) -> str:
    """Return what another library's error says, for a sentence.

    Args:
        error: The error.
        most: Most characters.

    Returns:
        Its text on one line, or its type where it says nothing.
    """
    return shortened(" ".join(str(error).split()) or type(error).__name__, most)


def same_name(value: str, valid: Iterable[str]) -> str:
    """Return the valid name that a text spells up to case, dashes and underscores; the text itself if none does.

    Args:
        value: What was typed.
        valid: The names that exist.

    Returns:
        A name as it is looked up.

    Example:
        >>> same_name("LoRA", ["lora", "post-block"]), same_name("Post_Block", ["lora", "post-block"])
        ('lora', 'post-block')
    """
    every = list(valid)
    if not isinstance(value, str) or value in every:
        return value
    alike = [name for name in every if _folded(name) == _folded(value)]
    return alike[0] if len(alike) == 1 else value


def _folded(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def did_you_mean(value: str, valid: list[str]) -> str:
    """Return a ``Did you mean ...?`` sentence for the closest valid name, or an empty string.

    Args:
        value: What was typed.
        valid: The names that exist.

    Returns:
        One or two names in a sentence that begins with a space.

    Example:
        >>> did_you_mean("resid_pots", ["resid_post", "mlp_out"])
        " Did you mean 'resid_post'?"
    """
    import difflib

    close = difflib.get_close_matches(value, valid, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
