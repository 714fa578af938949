"""Which lengths a model can read, and which of them may share a batch without changing each other's numbers.

Two kinds of rotary embedding look at the longest row of a pass and rotate all rows accordingly: ``longrope`` has one
set of factors up to the length of pretraining and another beyond, ``dynamic`` stretches with every token beyond the
model's context. The second never gets that far, since longer rows are refused; for the first, rows on either side are
kept apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models.wrappers import decoder_of

_SWITCHING = ("longrope", "su")  # the second is what Phi-3 called it first


def context_of(model: nn.Module) -> int | None:
    """Return the longest input in tokens, or ``None`` if the configuration does not say."""
    limit = getattr(_config(model), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def readable_length(model: nn.Module, max_length: int | None) -> int | None:
    """Return the smaller of a limit and the model's own, where there is one.

    Args:
        model: A transformers model.
        max_length: The caller's limit in tokens, or None for none.

    Returns:
        Tokens per row, or None where neither says one.
    """
    limits = [limit for limit in (max_length, context_of(model)) if limit is not None]
    return min(limits) if limits else None


def switch_length(model: nn.Module) -> int | None:
    """Return the length beyond which the model rotates positions by other factors; ``None`` if it never does.

    Rows up to it and rows beyond it must not share a batch, and a key/value cache filled below it must not be continued
    beyond it.

    Returns:
        A number of tokens, or ``None``.

    Raises:
        InputError: The layers switch at different lengths.
    """
    config = _config(model)
    found = []
    for parameters in _rope_parameters(config):
        if str(parameters.get("rope_type", parameters.get("type"))) in _SWITCHING:
            own = parameters.get("original_max_position_embeddings")
            own = getattr(config, "original_max_position_embeddings", None) if own is None else own
            own = context_of(model) if own is None else own
            found += [] if own is None else [int(own)]
    if len(set(found)) > 1:
        raise InputError(
            f"the layers of this model switch their rotary embedding at different lengths ({sorted(set(found))}); "
            "expected one. Give a model whose layers agree."
        )
    return found[0] if found else None


def is_beyond(length: int, switch: int | None) -> bool:
    """Whether a row of so many tokens is rotated by the other factors.

    Args:
        length: Tokens of the row.
        switch: :func:`switch_length` of the model; None where it has one set of factors.

    Returns:
        True above the switch; False everywhere if there is none.
    """
    return switch is not None and length > switch


def batches_within(
    order: Iterable[int], length: Callable[[int], int], size: int, switch: int | None
) -> Iterator[list[int]]:
    """Cut rows into batches of at most ``size``, none with rows on both sides of the switch.

    Args:
        order: The rows, shortest first for batches without much padding.
        length: How many tokens a row has.
        size: Rows per batch.
        switch: :func:`switch_length` of the model.

    Yields:
        Row numbers of one batch, in the given order.
    """
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) == size or is_beyond(length(row), switch) != is_beyond(length(batch[0]), switch)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def require_one_side(lengths: Sequence[int], switch: int | None, what: str, advice: str) -> None:
    """Refuse rows that have to share batches and may not.

    Args:
        lengths: Tokens of every row.
        switch: :func:`switch_length` of the model.
        what: What the rows are, in the plural.
        advice: What to do, a sentence.

    Raises:
        InputError: Some are up to the switch, and some beyond.
    """
    beyond = sum(is_beyond(length, switch) for length in lengths)
    if 0 < beyond < len(lengths):
        raise InputError(
            f"{beyond} of {len(lengths)} {what} are longer than {switch} tokens, where this model's rotary embedding "
            "switches to other factors for the whole batch: the numbers of the others would depend on which batch they "
            f"are in. {advice}"
        )


def sides(order: Sequence[int], length: Callable[[int], int], switch: int | None) -> list[list[int]]:
    """Return the rows up to the switch and those beyond it, in their order; none of them empty.

    Args:
        order: Row numbers.
        length: Gives a row's number of tokens.
        switch: :func:`switch_length` of the model.

    Returns:
        One list or two: short rows first.
    """
    parts = [[row for row in order if is_beyond(length(row), switch) is beyond] for beyond in (False, True)]
    return [part for part in parts if part]


def _config(model: nn.Module) -> Any:
    try:
        config: Any = getattr(decoder_of(model), "config", None)
    except UnsupportedModelError:  # no model of transformers, whose configuration would say
        return None
    text = getattr(config, "get_text_config", None)
    return text() if callable(text) else config


def _rope_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Return the settings of every rotary embedding: one, or one per type of layer; under its name of now or before."""
    found: list[Mapping[str, Any]] = []
    for name in ("rope_parameters", "rope_scaling"):
        given = getattr(config, name, None)
        if isinstance(given, Mapping):
            found += [given, *(value for value in given.values() if isinstance(value, Mapping))]
    return found
