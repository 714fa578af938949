"""Recognise the blocks of an unknown model: one traced pass, an equation per block, one description of them all."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.description import BlockDescription
from steerscope.models.recognition.equation import BlockReader
from steerscope.models.recognition.stack import path_of_stack
from steerscope.models.recognition.trace import Trace, traced
from steerscope.models.wrappers import decoder_of, in_evaluation_mode, run_on_random_tokens
from steerscope.site_kinds import Branch, SiteKind


@torch.no_grad()
def recognised(model: nn.Module) -> BlockDescription:
    """Return the description of a model's blocks, made from what they compute.

    One pass is traced; in every block the module that mixes tokens is its attention, the norms are what stands between
    the stream and what attention and MLP read, and the writers are those whose outputs, times a number each, make up
    the difference between what leaves the block and what enters it. The self-check on load has the last word.

    Args:
        model: A causal language model of transformers, plain or wrapped.

    Returns:
        The description, with one per layer where layers differ.

    Raises:
        UnsupportedModelError: There is no list of blocks, or a block's equation is none of those that steerscope
            knows; the message says which part of it failed, and what to do.

    Cost: one forward pass over 12 tokens, and two calls of every block's parts.
    """
    decoder = decoder_of(model)
    with in_evaluation_mode(model):
        with traced(decoder) as trace:
            ids = run_on_random_tokens(model)
        layers, blocks = blocks_of(decoder, trace, ids)
        found = [
            replace(BlockReader(module, index, trace, ids.shape).description(), layers=layers)
            for index, module in enumerate(blocks)
        ]
    return joined(found)


def blocks_of(decoder: nn.Module, trace: Trace, ids: Tensor) -> tuple[str, list[nn.Module]]:
    """Return the path of a decoder's list of blocks, and the blocks.

    Args:
        decoder: The stack of blocks with what is around it.
        trace: One pass through it.
        ids: The tokens of that pass, ``batch token``.

    Returns:
        The path, and the blocks from the lowest up.

    Raises:
        UnsupportedModelError: There is no such list, or its stream has other positions than the tokens.
    """
    layers = path_of_stack(decoder, trace)
    blocks = list(decoder.get_submodule(layers).children())
    seen = trace.of(blocks[0])[0].given
    if seen is None or seen.shape[:2] != ids.shape:
        raise UnsupportedModelError(
            f"the blocks of {type(decoder).__name__} get {None if seen is None else tuple(seen.shape[:2])} of "
            f"(batch, token) for {tuple(ids.shape)} tokens; expected one position of the stream per token. Use "
            "another model."
        )
    return layers, blocks


def joined(descriptions: list[BlockDescription]) -> BlockDescription:
    """Return one description of blocks that may differ from each other.

    Args:
        descriptions: One per block.

    Returns:
        The description that all share; where they differ, the first block's with all of them as ``by_layer``. Kinds of
        site that not all blocks have are given up in all: a branch without them is one map.

    Raises:
        UnsupportedModelError: Some blocks are parallel and others are not.
    """
    if all(one == descriptions[0] for one in descriptions):
        return descriptions[0]
    if len({one.parallel for one in descriptions}) > 1:
        raise UnsupportedModelError(
            "some blocks of this model are parallel (attention and MLP read one stream) and others are sequential; "
            "expected one of the two. Use another model."
        )
    shared = set(SiteKind).intersection(*(one.kinds for one in descriptions))
    for branch, kind in ((Branch.ATTENTION, SiteKind.ATTN_HEADS), (Branch.MLP, SiteKind.MLP_HIDDEN)):
        if kind not in shared:
            descriptions = [one.with_one_map(branch) for one in descriptions]
    layouts = list(dict.fromkeys(one.layout for one in descriptions))
    return replace(descriptions[0], layout=" / ".join(layouts), by_layer=tuple(descriptions))
