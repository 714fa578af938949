"""Which token is this? Where every token of a pass stands in its sequence, and where that sequence's prompt ends.

The one place that answers it, for every way rows can reach the model: padded on either side, going on from a cache,
several sequences in one row (packed), generated. What the inputs cannot tell is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError

# The label of tokens that are not supervised.
IGNORED = -100
# What an attention kernel for packed rows is told in place of position_ids, and what a paged cache comes with.
_PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
_PAGING = ("cache", "block_table", "read_index", "write_index")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that may stand for padding.

    Attributes:
        pads: The padding token's.
        marks: Those of tokens that begin and end a text.
    """

    pads: frozenset[int]
    marks: frozenset[int]

    @classmethod
    def of(cls, model: nn.Module) -> SpecialTokens:
        """Read what a model's configuration and generation settings say."""
        found: dict[str, set[int]] = {}
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            found[name] = set()
            for place in (getattr(model, "config", None), getattr(model, "generation_config", None)):
                found[name] |= as_ids(getattr(place, name, None))
        marks = found["bos_token_id"] | found["eos_token_id"]
        # Without a padding token people pad with one that ends texts.
        return cls(frozenset(found["pad_token_id"] or found["eos_token_id"]), frozenset(marks))


def as_ids(value: Any) -> set[int]:
    """Return the ids that a setting names: one, several or none."""
    if isinstance(value, Tensor):
        value = value.tolist()
    several = value if isinstance(value, list | tuple) else [value]
    return {int(one) for one in several if isinstance(one, int)}


@dataclass(frozen=True)
class Columns:
    """The columns of a pass, cached ones included.

    Attributes:
        real: Where there is a token, ``(batch column)``.
        order: How many tokens of the same sequence precede it, ``(batch column)``.
        sequence: For packed rows, which sequence of its row a token belongs to, ``(batch column)``.
        queries: How many columns, at the end, the pass computes.
    """

    real: Tensor
    order: Tensor
    sequence: Tensor | None
    queries: int

    @classmethod
    def of_rows(cls, real: Tensor, queries: int) -> Columns:
        """One sequence in every row, given where there are tokens ``(batch column)``.

        Args:
            real: ``(batch column)``: True at positions of tokens.
            queries: How many of the columns, the last ones, the pass computes; those before are cached.

        Returns:
            Columns whose positions count real tokens from 0.
        """
        return cls(real, real.cumsum(-1) - 1, None, queries)

    def ends_from_lengths(self, lengths: Any, *, is_whole: bool) -> Tensor:
        """Return prompt lengths of rows ``(batch)`` as ``(batch 1)``.

        Args:
            lengths: As the caller gave them.
            is_whole: Whether the rows hold their whole prompts, not a piece that fills a cache.

        Returns:
            ``(batch 1)`` whole numbers.

        Raises:
            InputError: There is not one for every row, one is no number of tokens of its row, or rows hold several
                sequences.
        """
        if self.sequence is not None:
            raise InputError(
                "got prompt_lengths, one per row, for packed rows, which hold several sequences. Pass labels, or give "
                "every sequence a row of its own."
            )
        return checked_lengths(lengths, self.real.sum(-1) if is_whole else None, len(self.real))[:, None]


def checked_lengths(lengths: Any, tokens: Tensor | None, rows: int) -> Tensor:
    """Return prompt lengths as a tensor ``(batch)``.

    Args:
        lengths: As the caller gave them: a tensor, or a list of whole numbers.
        tokens: How many tokens every row has ``(batch)``; None where prompts may go on beyond them.
        rows: How many rows there are.

    Returns:
        ``(batch)`` whole numbers.

    Raises:
        InputError: They are not one whole number per row, from 0 to the row's number of tokens.
    """
    found = as_tensor(lengths)
    if (
        found is None
        or found.dim() != 1
        or found.is_floating_point()
        or found.is_complex()
        or found.dtype is torch.bool
    ):
        what = type(lengths).__name__ if found is None else f"a tensor of {found.dtype} of shape {tuple(found.shape)}"
        raise InputError(
            f"prompt_lengths is {what}; expected one whole number per row. Pass torch.tensor([tokens of every prompt])."
        )
    if len(found) != rows:
        raise InputError(f"got {len(found)} prompt lengths for a batch of {rows}; expected one per row. Pass as many.")
    if bool((found < 0).any()):
        raise InputError(f"prompt_lengths holds {int(found.min())}; expected numbers of tokens, at least 0.")
    if tokens is not None and bool((over := found > tokens.to(found.device)).any()):
        row = int(over.long().argmax())
        raise InputError(
            f"prompt_lengths holds {int(found[row])} for row {row}, which has {int(tokens[row])} tokens; expected at "
            "most as many, padding not counted. (A pass that fills a cache with a piece of the prompt says "
            "use_cache=True.)"
        )
    return found


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or a list or array of numbers, as a tensor; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, list | tuple) and not hasattr(value, "__array__"):
        return None
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def columns_of(given: dict[str, Any], ids: Tensor, special: SpecialTokens, rule: str) -> Columns:
    """Return the columns of a pass of the decoder, outside of ``generate``.

    Args:
        given: The decoder's arguments by name, its keyword arguments among them.
        ids: Its ``input_ids`` or ``inputs_embeds``.
        special: The model's special tokens.
        rule: The positions, for messages.

    Returns:
        The columns of the pass, cached ones included.

    Raises:
        InputError: Arguments that do not say where there are tokens, or do not agree.
    """
    batch, new = ids.shape[:2]
    mask, places = given.get("attention_mask"), given.get("position_ids")
    cached = cached_columns(given.get("past_key_values"))
    if any(given.get(name) is not None for name in _PAGING):
        raise InputError(
            f"positions {rule!r} are counted in whole sequences, and this pass goes on from a paged cache (continuous "
            "batching), which does not show them. Use generate(), or an adapter with positions 'all'."
        )
    if mask is None:
        if cached == 0 and ids.dim() == 2 and rule != "mask":
            require_no_padding(ids, special)
        real = torch.ones(batch, cached + new, dtype=torch.bool, device=ids.device)
    else:
        real = real_columns(mask, batch, cached + new, rule)
    if rule == "mask":  # nothing is counted
        return Columns.of_rows(real, new)
    if any(given.get(name) is not None for name in _PACKING) and places is None:
        raise InputError(
            f"positions {rule!r} are counted in sequences, and rows packed with {', '.join(_PACKING)} alone do not say "
            "where they begin. Pass position_ids too (DataCollatorWithFlattening(return_position_ids=True))."
        )
    restarts = _restarts(places, real[:, cached:], rule)
    if restarts is None:
        return Columns.of_rows(real, new)
    if mask is not None or cached:
        raise InputError(
            f"position_ids restart inside a row, as in packed rows, which come with "
            f"{'an attention_mask' if mask is not None else 'a cache'} here: tokens of one sequence would attend to "
            f"the others, and positions {rule!r} cannot be counted. Leave the attention_mask and the cache out of "
            "packed rows, or give every sequence a row of its own."
        )
    at = torch.arange(new, device=ids.device).expand(batch, -1)
    begins = torch.where(restarts, at, 0).cummax(-1).values
    return Columns(real, at - begins, restarts.cumsum(-1), new)


def cached_columns(cache: Any) -> int:
    """Return how many columns a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def real_columns(mask: Any, batch: int, width: int, rule: str) -> Tensor:
    """Return where an attention mask says there are tokens, ``(batch column)``.

    Args:
        mask: The mask as it was given.
        batch: Rows of the pass.
        width: Its columns, cached ones included.
        rule: The positions, for messages.

    Returns:
        True at positions of tokens.

    Raises:
        InputError: It has another shape, or values other than 0 and 1.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        what = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"as a {type(mask).__name__}"
        raise InputError(
            f"positions {rule!r} are computed from an attention mask (batch, tokens), got one {what}. "
            "Pass the mask that the tokenizer gives."
        )
    if tuple(mask.shape) != (batch, width):
        raise InputError(
            f"the attention mask has shape {tuple(mask.shape)}; expected {(batch, width)}: a row for each of the batch "
            "and a column for every token, cached ones included."
        )
    real = mask != 0
    if rule != "mask" and mask.dtype is not torch.bool and not bool(((mask == 1) | ~real).all()):
        raise InputError(
            f"the attention mask holds values other than 0 and 1 (packed rows numbered in the mask do), from which "
            f"positions {rule!r} cannot be told. Pass 1 for every token and 0 for padding, one sequence a row."
        )
    return real


def require_no_padding(ids: Tensor, special: SpecialTokens) -> None:
    """Refuse rows without an attention mask that look padded.

    A token that may also begin or end a text is padding where it begins or ends some rows only, or more than once.

    Args:
        ids: ``(batch token)``.
        special: The model's special tokens.

    Raises:
        InputError: They do.
    """
    for pad in special.pads:
        found = ids == pad
        edges = found[:, [0, -1]]
        if pad not in special.marks:
            padded = edges.any()
        else:
            twice = found[:, [0, 1]].all(-1) | found[:, [-2, -1]].all(-1) if ids.shape[1] > 2 else edges.any(-1) & False
            padded = (edges.any(0) & ~edges.all(0)).any() | twice.any()
        if bool(padded):
            raise InputError(
                f"no attention_mask was given, and token {pad} at the edge of a row may be padding or text: which "
                "tokens are meant cannot be told. Pass attention_mask (the tokenizer gives it)."
            )


def _restarts(places: Tensor | None, real: Tensor, rule: str) -> Tensor | None:
    """Return where sequences begin in packed rows ``(batch token)``, None for rows of one sequence.

    Raises:
        InputError: Positions go backwards, but not to where the row began.
    """
    if places is None or places.dim() != 2 or places.shape[1] < 2:
        return None
    places = places.to(real.device).expand(len(real), -1)
    are_tokens, in_order = _padding_last(real, real, places)
    steps = in_order[:, 1:] - in_order[:, :-1]
    if not bool((are_tokens[:, 1:] & (steps < 1)).any()):
        return None
    begins = torch.nn.functional.pad(places[:, 1:] - places[:, :-1] != 1, (1, 0), value=True)
    if bool(real.all()) and bool((begins & (places != places[:, :1])).any()):
        raise InputError(
            f"position_ids go backwards inside a row without starting again where it began, so positions {rule!r} "
            "cannot be counted. Pass positions that rise by one within a sequence."
        )
    return begins


def _padding_last(real: Tensor, *values: Tensor) -> list[Tensor]:
    """Return values ``(batch token)`` with those of padding moved behind all others."""
    order = torch.argsort((~real).long(), dim=-1, stable=True)
    return [value.gather(1, order) for value in values]


def ends_from_labels(labels: Tensor, columns: Columns, ids: Tensor, special: SpecialTokens, rule: str) -> Tensor:
    """Return how many tokens the prompt has, before the first supervised one, ``(batch 1)`` or per token when packed.

    Cached columns precede the labels and belong to the prompt.

    Args:
        labels: ``(batch token)`` of the pass.
        columns: Its columns.
        ids: Its ``input_ids`` or ``inputs_embeds``.
        special: The model's special tokens.
        rule: The positions, for messages and for what must not be empty.

    Returns:
        ``(batch 1)``, or ``(batch token)`` for packed rows, in tokens.

    Raises:
        InputError: Labels of another shape, or labels from which the prompt's end cannot be told.
    """
    real = columns.real[:, columns.real.shape[1] - columns.queries :]
    if not isinstance(labels, Tensor) or labels.shape != real.shape:
        what = f"have shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"are a {type(labels).__name__}"
        raise InputError(
            f"labels {what}; expected a tensor {tuple(real.shape)}, one for each token of the pass. "
            "Pass as many, or prompt_lengths."
        )
    supervised = (labels.to(real.device) != IGNORED) & real
    if columns.sequence is None:
        before = supervised.cumsum(-1) == 0
        cached = columns.real[:, : columns.real.shape[1] - columns.queries].sum(-1, keepdim=True)
        ends = cached + (before & real).sum(-1, keepdim=True)
        _require_one_span(supervised, real, torch.zeros_like(labels, device=real.device), rule)
        _require_a_prompt(ends, cached, before & real, supervised, ids, special, rule)
        return ends
    _require_one_span(supervised, real, columns.sequence, rule)
    own = columns.order
    lengths = torch.zeros(len(own), int(columns.sequence.max()) + 1, dtype=own.dtype, device=own.device)
    lengths = lengths.scatter_add(1, columns.sequence, torch.ones_like(own)).gather(1, columns.sequence)
    first = torch.where(supervised, own, lengths)
    found = lengths.scatter_reduce(1, columns.sequence, first, "amin", include_self=False).gather(1, columns.sequence)
    if bool((supervised & (own == 1)).any()):
        raise InputError(
            "labels of packed rows supervise a sequence from its second token, and collators that pack rows take the "
            f"first one's label away: whether it is a prompt of one token cannot be told, which positions {rule!r} "
            "need. Pack examples whose prompt is longer, or give every sequence a row of its own."
        )
    return found


def _require_one_span(supervised: Tensor, real: Tensor, sequence: Tensor, rule: str) -> None:
    """Refuse sequences in which supervised tokens are parted by others: answers of several turns.

    Raises:
        InputError: There are some.
    """
    inside, same = _padding_last(real, supervised, sequence)
    begins = inside.clone()
    begins[:, 1:] &= ~(inside[:, :-1] & (same[:, 1:] == same[:, :-1]))
    count = torch.zeros(len(real), int(sequence.max()) + 1, dtype=torch.long, device=real.device)
    count = count.scatter_add(1, same, begins.long())
    if bool((count > 1).any()):
        raise InputError(
            f"the labels of row {int((count > 1).any(-1).long().argmax())} supervise several spans (turns of a "
            f"conversation, or tokens masked in between), so where the prompt of positions {rule!r} ends cannot be "
            "told. Give every answer a row of its own, or pass prompt_lengths."
        )


def _require_a_prompt(
    ends: Tensor, cached: Tensor, prompt: Tensor, supervised: Tensor, ids: Tensor, special: SpecialTokens, rule: str
) -> None:
    """Refuse labels that leave no prompt to edit, or one that is a mark which the collator may have taken for padding.

    Raises:
        InputError: They do.
    """
    if rule != "completion" and not bool(ends.all()):
        raise InputError(
            f"positions {rule!r} edit the prompt, and the labels of row "
            f"{int(ends[:, 0].argmin())} leave none: they supervise it from its first token. Set labels to "
            "-100 on the prompt (DataCollatorForLanguageModeling does not), or pass prompt_lengths."
        )
    marks = special.pads | special.marks
    if ids.dim() != 2 or not marks:
        return
    is_mark = torch.isin(ids, torch.tensor(sorted(marks), device=ids.device)).to(prompt.device)
    only = (prompt & is_mark).any(-1) & ~(prompt & ~is_mark).any(-1) & supervised.any(-1) & (cached[:, 0] == 0)
    if bool(only.any()):
        raise InputError(
            f"the only tokens of row {int(only.long().argmax())} before its labels begin are special ones, whose label "
            "a collator takes away where padding has the same id (DataCollatorForLanguageModeling with the end token "
            f"as padding): whether they are a prompt, so positions {rule!r} cannot be told. Pass prompt_lengths."
        )
