"""Find the list of blocks in an unknown decoder: the modules that hand the residual stream on to each other."""

from __future__ import annotations

from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.recognition.trace import Trace, is_same


def path_of_stack(decoder: nn.Module, trace: Trace) -> str:
    """Return the path of the list of blocks inside a decoder.

    Args:
        decoder: The stack of blocks with what is around it.
        trace: One pass through it, of one sequence or more.

    Returns:
        The path of the longest list whose modules run once each, in their order, each on what the one before gave.

    Raises:
        UnsupportedModelError: There is none.
    """
    why = "it keeps no list of modules (ModuleList) that run one after the other"
    found: list[tuple[int, str]] = []
    for path, module in decoder.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or not path or not len(module):
            continue
        reason = _broken(list(module.children()), trace)
        if reason is None:
            found.append((len(module), path))
        elif reason:
            why = f"of {path!r}, {reason}"
    if not found:
        raise UnsupportedModelError(
            f"no residual stream was found in {type(decoder).__name__}: {why}. Sites are those of blocks that read the "
            "stream and add to it. Use another model, or pass a BlockDescription if such a list is there."
        )
    longest = max(length for length, _ in found)
    return next(path for length, path in found if length == longest)


def _broken(modules: list[nn.Module], trace: Trace) -> str | None:
    """Return why modules are no stack of blocks: an empty text where they have nothing of one, ``None`` if they are."""
    before: Tensor | None = None
    ended = 0
    for index, module in enumerate(modules):
        calls = trace.of(module)
        if not calls:
            return "" if index == 0 else f"module {index} does not run"
        if len(calls) > 1:
            return f"module {index} runs {len(calls)} times in one pass"
        (call,) = calls
        if call.given is None or call.gave is None or call.given.dim() != 3 or call.given.shape != call.gave.shape:
            return "" if index == 0 else f"module {index} does not give back what it gets"
        if call.began < ended:
            return f"module {index} runs inside the one before it"
        if before is not None and not is_same(before, call.given):
            return f"module {index} does not read what module {index - 1} gives (something is added or scaled between)"
        before, ended = call.gave, call.ended
    return None
