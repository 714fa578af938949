"""The two ways steerscope says no.

Every message follows one pattern: the value received, the value expected, and what to do next.
"""


class SteerscopeError(Exception):
    """Base class of every error steerscope raises on purpose."""


class InputError(SteerscopeError, ValueError):
    """What the caller passed in cannot be used; the command line turns it into exit code 2."""


class UnsupportedModelError(InputError):
    """The model's blocks match no layout steerscope knows, or failed the self-check on load."""


def did_you_mean(value: str, valid: list[str]) -> str:
    """Return a ``Did you mean ...?`` sentence for the closest valid name, or an empty string."""
    import difflib

    close = difflib.get_close_matches(value, valid, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
