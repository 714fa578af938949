"""Words that many rows begin with, an instruction for example: computed once for all of them.

Keys and values of these tokens are the same in every row, so a pass over them alone gives a cache, which is repeated
for the rows and which the second pass continues; in backward the gradients of all rows meet in it. Results are those
of whole rows up to rounding. Models for which they are not (a state in place of a cache, dropout, which would be drawn
once for all rows) get whole rows: :func:`shared_length` tries it out first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.models.lengths import is_beyond, switch_length
from steerscope.models.offloaded import device_of
from steerscope.models.tokens import padded
from steerscope.models.wrappers import in_evaluation_mode
from steerscope.steering import SteeringModel
from steerscope.steering.positions import Positions

# Below this a second pass costs more than it saves.
SHORTEST = 8
# Largest relative difference between logits of the two ways that can be rounding.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUNDING_OF_HALF = 0.05
# Names under which modules keep rates of dropout that they draw by functions.
_RATES = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
# What models without a cache of the usual sort do when they are asked for one.
_NO_CACHE = (TypeError, AttributeError, NotImplementedError, ValueError, RuntimeError)


def shared_length(model: nn.Module, rows: Sequence[Sequence[int]], prompts: Sequence[int], pad: int) -> int:
    """Return how many tokens at the start of all rows can be computed once: 0 where it would not pay or not be right.

    Rows will be padded on the left.

    Args:
        model: A causal language model or a wrapper of one.
        rows: Token ids.
        prompts: How many tokens of each row are its prompt; the prefix ends before the last of them, and before those
            that a steering adapter counts back from the prompt's end.
        pad: Any token to fill with.

    Returns:
        A number of tokens.

    Cost: passes over two rows.
    """
    length = common_length(rows, prompts, counted_back(model))
    return length if can_stand_apart(model, rows, prompts, pad, length, pads_left=True) else 0


def common_length(rows: Sequence[Sequence[int]], prompts: Sequence[int], behind: int | None) -> int:
    """Return with how many tokens all rows begin, at most up to ``behind`` before any prompt's end; 0 if it is few.

    Args:
        rows: Token ids.
        prompts: How many tokens of each row are its prompt.
        behind: :func:`counted_back`.

    Returns:
        A number of tokens.
    """
    if behind is None or len(rows) < 2:
        return 0
    columns = zip(*rows, strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    length = min(common, min(prompts) - behind)
    return 0 if length < SHORTEST else length


def can_stand_apart(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    prompts: Sequence[int],
    pad: int,
    length: int,
    *,
    pads_left: bool = False,
) -> bool:
    """Say whether a model gives the same logits where the first ``length`` tokens are computed once.

    Args:
        model: A causal language model or a wrapper of one, in the mode in which it will run.
        rows: Token ids; the shortest and the longest are tried out.
        prompts: How many tokens of each row are its prompt.
        pad: Any token to fill with.
        length: :func:`common_length` of the rows.
        pads_left: Whether rows will be padded on the left, behind what stands apart; else on the right.

    Returns:
        ``True`` where the logits agree up to rounding.
    """
    if not length or drops(model):
        return False
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    if is_beyond(len(rows[order[-1]]), switch_length(model)):
        return False  # keys of the prefix alone are rotated by other factors
    chosen = [order[0], order[-1]]
    return _is_right(model, [rows[i] for i in chosen], [prompts[i] for i in chosen], pad, length, pads_left)


def cache_of(model: nn.Module, prefix: Tensor, rows: int, told: dict[str, Any] | None = None, without: int = 0) -> Any:
    """Return the cache of prefixes ``(prefix token)``, each repeated for so many rows.

    Args:
        model: A causal language model or a wrapper of one.
        prefix: Token ids.
        rows: How often.
        told: What else the model is to be given.
        without: How many of the lowest blocks are not run, and have no keys and values.

    Returns:
        A key/value cache of the model's own kind.
    """
    columns = torch.arange(prefix.shape[1], device=prefix.device).expand_as(prefix)
    given = {"input_ids": prefix, "attention_mask": torch.ones_like(prefix), "position_ids": columns}
    cache = model(**given, use_cache=True, **(told or {})).past_key_values
    for block in range(without):
        # Masks are made for as many columns as the first block has cached.
        nothing = torch.zeros(len(prefix), 1, prefix.shape[1], 1, device=prefix.device)
        cache.update(nothing, nothing, block)
    cache.batch_repeat_interleave(rows)
    return cache


@dataclass(frozen=True)
class Prefix:
    """What rows begin with, computed once; for passes without gradients.

    Attributes:
        ids: Its tokens ``(1 token)``, perhaps none.
        cache: Their keys and values; ``None`` without tokens.
    """

    ids: Tensor
    cache: Any

    @classmethod
    def of(cls, model: nn.Module, rows: Sequence[Sequence[int]], prompts: Sequence[int], pad: int) -> Prefix:
        """Find and compute the prefix of all rows; see :func:`shared_length`.

        Args:
            model: A causal language model or a wrapper of one, in the mode in which it will run.
            rows: Token ids, one sequence per row.
            prompts: How many tokens of each row are its prompt.
            pad: Any token to fill with.

        Returns:
            The prefix with its key/value cache; without a common start, an empty one.
        """
        length = shared_length(model, rows, prompts, pad)
        ids = torch.tensor([list(rows[0][:length])], dtype=torch.long, device=device_of(model))
        if not length:
            return cls(ids, None)
        return cls(ids, cache_of(model, ids, 1, _told(model, [min(prompts)], ids.device)))

    @classmethod
    def none(cls, model: nn.Module) -> Prefix:
        """Return a prefix without tokens."""
        return cls(torch.empty(1, 0, dtype=torch.long, device=device_of(model)), None)

    @property
    def length(self) -> int:
        """How many tokens."""
        return self.ids.shape[1]

    def before(self, mask: Tensor) -> dict[str, Any]:
        """Return the mask of whole rows and the cache to go on from, given the mask of what follows ``(row token)``.

        The cache is a copy: passes that go on from it write into it.
        """
        if self.cache is None:
            return {"attention_mask": mask}
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(mask))
        ones = torch.ones(len(mask), self.length, dtype=mask.dtype, device=mask.device)
        return {"attention_mask": torch.cat([ones, mask], 1), "past_key_values": cache, "use_cache": True}


def counted_back(model: nn.Module) -> int | None:
    """Return how many tokens before the prompt's end belong in the rows, or ``None`` if none may stand apart."""
    return counted_by(model.steering_config.positions) if isinstance(model, SteeringModel) else 1


def counted_by(positions: str) -> int | None:
    """Return how many tokens before the prompt's end a rule of positions counts, at least the one that predicts."""
    rule = Positions.parse(positions)
    return None if rule.rule == "mask" else max(1, rule.count if rule.rule == "last" else 1)


def _told(model: nn.Module, prompts: Sequence[int], device: torch.device) -> dict[str, Any]:
    return {"prompt_lengths": torch.tensor(prompts, device=device)} if isinstance(model, SteeringModel) else {}


def drops(model: nn.Module) -> bool:
    """Whether dropout is drawn: by a module of its own, or by one that keeps a rate as a number."""
    return any(module.training and any(rate > 0 for rate in _rates(module)) for module in model.modules())


def _rates(module: nn.Module) -> list[float]:
    kept = [module.p] if isinstance(module, nn.Dropout) else [getattr(module, name, 0) for name in _RATES]
    return [float(rate) for rate in kept if isinstance(rate, int | float)]


@torch.no_grad()
def _is_right(
    model: nn.Module, rows: Sequence[Sequence[int]], prompts: Sequence[int], pad: int, length: int, pads_left: bool
) -> bool:
    """Whether both ways give the same logits after these rows."""
    device = device_of(model)
    width = max(map(len, rows))
    told = _told(model, prompts, device)
    ends = torch.tensor([width if pads_left else len(row) for row in rows], device=device) - 1

    def logits(cached: int, **cache: Any) -> Tensor:
        ids, own = (
            padded(one, value, device, "left" if pads_left else "right")
            for one, value in (([row[cached:] for row in rows], pad), ([[1] * (len(row) - cached) for row in rows], 0))
        )
        columns = torch.cat([own.new_ones(len(rows), cached), own], 1)
        places = (columns.cumsum(-1) - 1).clamp_min(0)[:, cached:]
        given = {"input_ids": ids, "attention_mask": columns, "position_ids": places}
        found: Tensor = model(**given, **told, **cache).logits
        return found[torch.arange(len(rows), device=device), ends - cached]

    with in_evaluation_mode(model):
        try:
            expected = logits(0, use_cache=False)
            prefix = torch.tensor([list(rows[0][:length])], device=device)
            cache = cache_of(model, prefix, len(rows), _told(model, [min(prompts)], device))
            found = logits(length, past_key_values=cache, use_cache=True)
        except _NO_CACHE:
            return False
    limit = _ROUNDING.get(expected.dtype, _ROUNDING_OF_HALF)
    return float((found - expected).abs().max()) <= limit * float(expected.abs().max())
