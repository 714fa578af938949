"""Runs of a whole subject: edits at any sites, other weights, other tokens; seeded fine-tuned weights; one block alone.

:mod:`parts` looks at one block. Here statements span layers, so weights change by name for the length of a context
and edits are keyed by site. Nothing stays changed after a context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from steerscope.equivalence.propositions.parts import Pass, as_stored, one_pass, output_first, parameter_name
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.calls import calls_of, stream_of
from steerscope.models.changed_weights import with_update
from steerscope.models.hooks import Edit
from steerscope.sites import Site, SiteKind

# A check fine-tunes and steers at most this many blocks, so that it takes seconds on a real model, too.
MAX_BLOCKS = 6
# Frobenius norm of a random fine-tuning update of a matrix, relative to the matrix: clearly visible, not a new model.
TUNING = 0.1
RANK = 2
# What a slope on logarithmic axes may be, of an error of first and of second order.
FIRST_ORDER, SECOND_ORDER = (0.95, 1.05), (1.95, 2.05)


def run_at(
    subject: Subject,
    sites: Iterable[Site] = (),
    *,
    edits: Mapping[Site, Edit] | None = None,
    update: Mapping[str, Tensor] | None = None,
    position_ids: Tensor | None = None,
) -> Pass[Site]:
    """Run the model once on the subject's tokens.

    Args:
        subject: What to run, inside ``subject.ready()``.
        sites: What to read, after edits.
        edits: What to add, by site.
        update: Change per parameter name, for this pass.
        position_ids: ``(1, token)``, or the model's own.

    Returns:
        What was read, by site, and the logits.
    """
    with with_update(subject.model, update or {}):
        return one_pass(subject, {site: site for site in sites}, edits or {}, position_ids=position_ids)


@contextmanager
def output_mapped(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass what a module returns through ``function`` inside the context.

    Args:
        module: Any module of the model.
        function: From what it returns (the first entry of a tuple) to what is passed on.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    with module.register_forward_hook(hook):
        yield


@contextmanager
def input_mapped(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the first input of a module through ``function`` inside the context.

    Args:
        module: Any module of the model.
        function: From its first input, by position or by name, to what it receives.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (function(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: function(kwargs[first])}

    with module.register_forward_pre_hook(hook, with_kwargs=True):
        yield


def low_rank_change(
    subject: Subject, module: nn.Module, *, rank: int = RANK, size: float = TUNING, salt: int = 0
) -> tuple[Tensor, Tensor]:
    """Return LoRA factors ``B`` (out rank) and ``A`` (rank in) with ``|B A| = size |W|`` (Frobenius).

    Args:
        subject: Seeds the draw.
        module: The linear map.
        rank: Rank of the change.
        size: Frobenius norm of the change, relative to the weight's.
        salt: Tells draws of one check apart.

    Returns:
        ``(out, rank)`` and ``(rank, in)``.
    """
    weight = output_first(module)
    out, into = weight.shape
    write = subject.draw(out, rank, salt=2 * salt)
    read = subject.draw(rank, into, salt=2 * salt + 1)
    return write * (size * weight.norm() / (write @ read).norm()), read


def as_update(subject: Subject, module: nn.Module, change: Tensor) -> dict[str, Tensor]:
    """Return an output-first change of a linear map's weight as a weight update by name.

    Args:
        subject: The model.
        module: The linear map.
        change: ``(out, in)``.

    Returns:
        One entry, in the model's own storage.
    """
    return {parameter_name(subject, module): as_stored(module, change)}


def fine_tuning(subject: Subject, layers: Iterable[int] | None = None, *, size: float = TUNING) -> dict[str, Tensor]:
    """Return a seeded low-rank update of every linear map of the given blocks (by default :func:`spread`).

    Args:
        subject: Seeds the draws.
        layers: Which blocks.
        size: Frobenius norm of every change, relative to the weight's (notebook 6 varies it).

    Returns:
        Change per parameter name.
    """
    update = {}
    for layer in spread(subject) if layers is None else layers:
        for index, module in enumerate(subject.site_map.blocks[layer].linear_maps().values()):
            write, read = low_rank_change(subject, module, size=size, salt=100 + 20 * layer + index)
            update.update(as_update(subject, module, write @ read))
    return update


def base_and_tuned(subject: Subject, layers: tuple[int, ...], update: dict[str, Tensor]) -> tuple[Pass, Pass]:
    """Return the base run and the fine-tuned run, both read at the outputs of ``layers``.

    Args:
        subject: Where the numbers come from; inside ``subject.ready()``.
        layers: Blocks whose outputs are read.
        update: Change per parameter name.

    Returns:
        Two passes over the same tokens.
    """
    sites = [post(layer) for layer in layers]
    return run_at(subject, sites), run_at(subject, sites, update=update)


def spread(subject: Subject, count: int = MAX_BLOCKS) -> tuple[int, ...]:
    """Return the layers a check fine-tunes: all, or ``count`` spread evenly, first, last and the subject's among them.

    The subject's own block is put in for its nearest neighbour.

    Args:
        subject: The model, and the block that must be among the layers.
        count: How many layers.

    Returns:
        Layers in rising order.
    """
    total = len(subject.site_map.blocks)
    if total <= count:
        return tuple(range(total))
    chosen = [int(layer) for layer in np.linspace(0, total - 1, count).round()]
    if subject.layer not in chosen:
        nearest = min(chosen[1:-1], key=lambda layer: abs(layer - subject.layer))
        chosen[chosen.index(nearest)] = subject.layer
    return tuple(sorted(chosen))


def post(layer: int) -> Site:
    """Return the site where a block's output leaves it."""
    return Site(layer, SiteKind.RESID_POST)


def shortened(subject: Subject, tokens: int) -> Subject:
    """Return the subject on the first tokens of its first sequence alone.

    Args:
        subject: Whose tokens.
        tokens: How many to keep.

    Returns:
        The subject with ``input_ids`` of shape ``(1, tokens)``.
    """
    return replace(subject, input_ids=subject.input_ids[:1, :tokens])


def block_alone(subject: Subject, layer: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return one block as a function of the stream that enters it, and that stream.

    Masks and positions are those of the subject's tokens.

    Args:
        subject: Where the numbers come from; inside ``subject.ready()``.
        layer: Which block, from 0.

    Returns:
        The function, from and to ``(batch, token, d)``, and the entering stream.
    """
    block = subject.site_map.blocks[layer].module
    with calls_of([block]) as calls:
        subject.model(input_ids=subject.input_ids, use_cache=False)
    call = calls[block]

    def function(h: Tensor) -> Tensor:
        output = call.again(block, h)
        return output[0] if isinstance(output, tuple) else output

    return function, stream_of(call.args, call.kwargs).detach()


def unit(x: Tensor) -> Tensor:
    """Return ``x / |x|`` over all entries."""
    return x / x.norm()
