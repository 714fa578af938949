"""One block on its own: called again with the arguments the model gave it, at the same or at changed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from steerscope.analysis.theory.common import Update, weight_names
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.blocks import Block
from steerscope.models.calls import Call, calls_of, stream_of
from steerscope.models.hooks import reading
from steerscope.models.load import LoadedModel
from steerscope.models.site_map import SiteMap
from steerscope.models.wrappers import decoder_of
from steerscope.sites import Site, SiteKind


@dataclass(frozen=True)
class BlockCall:
    """A block and the arguments of one of its calls.

    Attributes:
        block: The block.
        call: Its arguments, as the model passed them.
        inner_names: Name inside the block of every weight, by its name in the model.
    """

    block: Block
    call: Call
    inner_names: Mapping[str, str]

    def run(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the block's output (``batch token channel``) with some weights, by inner name, replaced."""
        output = functional_call(self.block.module, dict(weights), self.call.args, self.call.kwargs)
        return output[0] if isinstance(output, tuple | list) else output

    def tensors(self, site_map: SiteMap, layer: int) -> dict[SiteKind, Tensor]:
        """Return every site's tensor (``batch token channel``) of this call. Cost: one pass of the block.

        Args:
            site_map: The model's sites.
            layer: Index of the block.

        Returns:
            Tensors by kind of site.
        """
        # What enters is the output of the block below, which does not run here.
        entering = {SiteKind.RESID_PRE: stream_of(self.call.args, self.call.kwargs)}
        sites = {kind: Site(layer, kind) for kind in site_map.description.kinds if kind not in entering}
        with torch.no_grad(), reading(site_map, sites.values()) as found:
            self.run({})
        return entering | {kind: found[site] for kind, site in sites.items()}

    def shift(self, update: Update) -> Tensor:
        """Return the first-order shift of the block's output under an update of its weights, its input fixed."""
        weights, change = self._pair(update)
        found: Tensor = jvp(lambda w: self.run(w), (weights,), (change,))[1]
        return found.detach()

    def output_with(self, update: Update) -> Tensor:
        """Return the block's output with the update really made, its input fixed."""
        weights, change = self._pair(update)
        with torch.no_grad():
            return self.run({name: weights[name] + change[name] for name in weights})

    def _pair(self, update: Update) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        named = dict(self.block.module.named_parameters())
        inner = {self.inner_names[name]: change for name, change in update.items()}
        weights = {name: named[name].detach() for name in inner}
        return weights, {name: change.detach().to(weights[name]) for name, change in inner.items()}


def block_calls(loaded: LoadedModel, ids: Tensor, layers: Sequence[int]) -> dict[int, BlockCall]:
    """Run the model once and return one call per layer.

    Use the calls inside :func:`forward_differentiable_attention`: masks are made for that attention.

    Args:
        loaded: The model.
        ids: Tokens ``(batch token)``, without padding.
        layers: Which blocks.

    Returns:
        By layer, the block with the arguments it was called with.

    Cost: one forward pass without the unembedding.
    """
    blocks = loaded.site_map.blocks
    with (
        calls_of(blocks[i].module for i in layers) as recorded,
        torch.no_grad(),
        forward_differentiable_attention(loaded.model),
    ):
        decoder_of(loaded.model)(input_ids=ids, use_cache=False)  # no logits are needed
    outer = weight_names(loaded)
    calls = {}
    for index in layers:
        by_id = {id(parameter): name for name, parameter in blocks[index].module.named_parameters()}
        named = dict(loaded.model.named_parameters())
        inner = {name: by_id[id(named[name])] for (layer, _), name in outer.items() if layer == index}
        calls[index] = BlockCall(blocks[index], recorded[blocks[index].module], inner)
    return calls
