"""Reading answers out of generated text: a boolean, an option, a letter, a number, a tag.

Rules that all parsers share, each held by a test with texts made to break it:

- only what was generated is read, never the prompt (whoever generates cuts token ids, not strings);
- an answer stands behind an answer phrase, ``Answer:`` before ``answer is``. Where completions start with the phrase
  the first one that can be read counts, where reasoning comes before it the last one;
- a text with phrases of which none can be read has no answer: no rule looks elsewhere in it. Only a text without any
  phrase is searched, and only for an answer that cannot be mistaken;
- no answer is ever a default class: what cannot be read is ``None``, and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

# Markdown and quotation marks that models put around answers.
_DECORATION = r"[\s*_\"'`“”‘’]*"
_COLON = re.compile(rf"\banswer{_DECORATION}:", re.IGNORECASE)
_IS = re.compile(r"\banswer\s+is\b\s*:?", re.IGNORECASE)

_BOOLEAN = re.compile(rf"{_DECORATION}\(?(true|false)\b(?!\s*(?:/|or\b))", re.IGNORECASE)
_NEGATED = re.compile(r"(?:\bnot|n['’]t|\bnever)\s+(?:true|false)\b", re.IGNORECASE)
_YES_NO = re.compile(rf"{_DECORATION}(yes|no)(?=\s*(?:$|[.,:;!)\]*\n]))", re.IGNORECASE)
_OPTION = re.compile(rf"{_DECORATION}\(?option\s*([12])(?![\d\w])", re.IGNORECASE)

# A bare letter must end there: "A." or "A, since" but neither "A bee" nor "A.M." nor "all of them".
_LETTER = re.compile(rf"{_DECORATION}(?:\(\s*([A-Za-z])\s*\)|([A-Za-z])(?=\s*(?:$|[,:;!)\]*\n]|\.(?!\w))))")
_SECOND_LETTER = re.compile(r"[.)]*\s*(?:,|/|&|and\b|or\b)\s*(?:and\s+|or\s+)?\(?[A-Z]\)?(?![\w'’])")

# A number is read whole or not at all: "2280" is never 228, and "12,34" is not a number.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])(?:[-−][$€£]?|[$€£][-−]))?[$€£]?(?<![\w.,])"
    r"(?P<value>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?P<exponent>[eE][+-]?[0-9]{1,2}(?![0-9]))?"
    r"(?:\s?/\s?(?P<below>[0-9]+))?(?![.,]?[0-9]|[eE][+-]?[0-9])"
)
# A model in a loop can write thousands of digits, which Python refuses to convert.
_MOST_DIGITS = 40
_TOLERANCE = Fraction(1, 10_000)

_TAG = re.compile(r"<\s*answer\s*>\s*([-−]?[0-9]{1,9})\s*(?:<\s*/\s*answer\s*>|$)", re.IGNORECASE)
_ANY_TAG = re.compile(r"<\s*answer\s*>", re.IGNORECASE)


def has_phrase(text: str) -> bool:
    """Return whether an answer phrase occurs."""
    return bool(_COLON.search(text) or _IS.search(text))


def boolean(text: str) -> str | None:
    """Return ``"true"`` or ``"false"``: behind the first phrase, else the only one of the two words, not negated."""
    if has_phrase(text):
        return _behind_phrases(text, lambda rest: _lower(_BOOLEAN.match(rest)))
    words = {word.lower() for word in re.findall(r"\b(?:true|false)\b", text, re.IGNORECASE)}
    return words.pop() if len(words) == 1 and not _NEGATED.search(text) else None


def yes_or_no(text: str) -> str | None:
    """Return ``"yes"`` or ``"no"`` if the text starts with it and the word ends there: ``no one`` is not an answer."""
    return _lower(_YES_NO.match(text))


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """Return the choice that a text is, else the only one that it starts with, white space around all of them aside.

    A choice that ends in a letter or digit must not go on as a longer word or number: ``12`` does not start with ``1``.

    Args:
        text: What the model wrote.
        choices: The texts to choose from.

    Returns:
        The choice without white space around it, or ``None`` where none or several fit.

    Example:
        >>> chosen(" 12 apples", ["1", "12"]), chosen("a pear", ["1", "12"])
        ('12', None)
    """
    written = text.strip()
    plain = [one.strip() for one in choices]
    equal = [one for one in plain if one == written]
    starts = [one for one in plain if one and written.startswith(one) and not _goes_on(one, written)]
    found = equal or starts
    return found[0] if len(found) == 1 else None


def _goes_on(start: str, text: str) -> bool:
    return start[-1].isalnum() and text[len(start) : len(start) + 1].isalnum()


def option(text: str) -> str | None:
    """Return ``"1"`` or ``"2"``: ``Option1`` behind the first phrase, else the only option that is named."""
    if has_phrase(text):
        return _behind_phrases(text, lambda rest: _lower(_OPTION.match(rest)))
    named = set(re.findall(r"\boption\s*([12])(?![\d\w])", text, re.IGNORECASE))
    return named.pop() if len(named) == 1 else None


def letter(text: str, options: Sequence[str], *, last: bool = False) -> str | None:
    """Return the letter of an option, ``"A"`` for the first.

    Behind a phrase: ``(C)`` whatever follows; a bare ``C`` that ends there; or exactly the text of one option. Two
    letters (``A or B``) are no answer. Without a phrase the text has to start so (``last``: to be nothing else).

    Args:
        text: What was generated.
        options: The options' texts, in order; letters beyond them are no answer.
        last: The last phrase counts, for completions that reason first.

    Returns:
        An upper-case letter, or ``None`` where there is none or more than one.
    """

    def read(rest: str) -> str | None:
        if match := _LETTER.match(rest):
            found = (match[1] or match[2]).upper()
            if ord(found) - ord("A") < len(options) and not _SECOND_LETTER.match(rest, match.end()):
                return found
            return None
        line = _plain(rest.strip().partition("\n")[0])
        equal = [index for index, one in enumerate(options) if _plain(one) == line]
        return chr(ord("A") + equal[0]) if line and len(equal) == 1 else None

    if has_phrase(text):
        return _behind_phrases(text, read, last=last)
    if last and len(text.strip(" \n\t().*")) > 1:
        return None
    return read(text)


def number(text: str) -> str | None:
    """Return a number in its shortest decimal form: behind the last phrase, else the last number of the text.

    Behind a phrase the first line counts, of an equation what follows its last ``=``, and there the first number.
    Signs, thousands separators, decimals, currency signs, fractions and exponents of two digits are understood.
    """
    if has_phrase(text):

        def read(rest: str) -> str | None:
            line = rest.strip().partition("\n")[0].rpartition("=")[2]
            return next((value for match in _NUMBER.finditer(line) if (value := _value(match)) is not None), None)

        return _behind_phrases(text, read, last=True)
    values = [value for match in _NUMBER.finditer(text) if (value := _value(match)) is not None]
    return values[-1] if values else None


def same_number(first: str, second: str) -> bool:
    """Return whether two numbers, as :func:`number` gives them, differ by at most 1e-4 (the paper's tolerance).

    Args:
        first: A number as text, such as ``"3"`` or ``"7/2"``.
        second: The other number.

    Returns:
        Whether they are equal up to the tolerance.

    Example:
        >>> same_number("1/3", "0.33333"), same_number("1", "2")
        (True, False)
    """
    return abs(Fraction(first) - Fraction(second)) <= _TOLERANCE


def tagged(text: str) -> str | None:
    """Return the integer in the first ``<answer>`` tag; without tag or phrase, the only number of the text.

    The closing tag may be missing at the very end. A text with a tag that holds no integer has no answer.
    """
    if match := _TAG.search(text):
        return str(int(match[1].replace("−", "-")))
    if _ANY_TAG.search(text):
        return None
    if has_phrase(text):
        return _behind_phrases(text, lambda rest: number(rest.strip().partition("\n")[0]))
    values = [_value(match) for match in _NUMBER.finditer(text)]
    return values[0] if len(values) == 1 else None


def leading_integer(text: str) -> str | None:
    """Return the integer that the text starts with; one that goes on as a longer number is none."""
    match = _NUMBER.match(text.lstrip())
    value = _value(match) if match else None
    return value if value is not None and "." not in value else None


def _behind_phrases(text: str, read: Callable[[str], str | None], *, last: bool = False) -> str | None:
    """Return the first (or last) phrase's answer that can be read; ``Answer:`` goes before ``answer is``."""
    for phrase in (_COLON, _IS):
        rests = [text[match.end() :] for match in phrase.finditer(text)]
        for rest in reversed(rests) if last else rests:
            if (found := read(rest)) is not None:
                return found
    return None


def _value(match: re.Match[str]) -> str | None:
    digits = match["value"].replace(",", "")
    below = match["below"] or "1"
    if len(digits) > _MOST_DIGITS or len(below) > _MOST_DIGITS or not int(below):
        return None
    value = Fraction(digits + (match["exponent"] or "")) / int(below)
    return decimal_form(-value if match["sign"] else value)


def decimal_form(value: Fraction) -> str:
    """Return an integer without a point, anything else as the shortest decimal that floats need."""
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def _lower(match: re.Match[str] | None) -> str | None:
    return match[1].lower() if match else None


def _plain(text: str) -> str:
    """Fold case and white space, and drop the decoration and full stop around a text."""
    return " ".join(text.split()).strip(" *_\"'`“”‘’.").casefold()
