"""What the measurements share: updates, their sizes, the tensors of blocks, rows of tokens of one length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.analysis.data.encoding import Encoded
from steerscope.errors import InputError
from steerscope.finite import require_finite
from steerscope.models.blocks import linear_weight
from steerscope.models.hooks import reading
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import require_weights_in_memory
from steerscope.models.packed import require_plain_weights
from steerscope.models.wrappers import decoder_of
from steerscope.sites import Site, SiteKind

Update = Mapping[str, Tensor]
OUTLIER = 4.0


@dataclass(frozen=True)
class Rows:
    """Sequences of one length, so that nothing is padded.

    Attributes:
        ids: ``batch token``.
        answer: Positions whose logits predict the answer, as a slice of the token axis.
    """

    ids: Tensor
    answer: slice

    def first(self, count: int) -> Rows:
        """Return the first ``count`` sequences."""
        return Rows(self.ids[:count], self.answer)


def rows_of_one_length(encoded: Encoded, count: int) -> Rows:
    """Return at most ``count`` sequences of the most frequent length (the longest of equally frequent ones).

    Where choices are sequences of their own, the right one is taken.

    Args:
        encoded: The examples as tokens.
        count: Most sequences to return.

    Returns:
        Tokens ``(batch token)`` without padding, and the positions that predict the answer.

    Raises:
        InputError: No sequence has two tokens or more.
    """
    right = [
        s for s in encoded.sequences if s.choice == (encoded.answers[s.example] if s.first_target < len(s.ids) else 0)
    ]
    shapes = Counter((len(s.ids), s.first_target) for s in right if len(s.ids) > 1)
    if not shapes:
        raise InputError(
            "got no sequence of at least two tokens; expected prompts with an answer. Give longer prompts."
        )
    shape = max(shapes, key=lambda key: (shapes[key], key))
    ids = [s.ids for s in right if (len(s.ids), s.first_target) == shape][:count]
    length, first_target = shape
    # The logits one position earlier predict a token; the last token of a fed answer predicts nothing known.
    stop = length if first_target == length else length - 1
    return Rows(torch.tensor(ids), slice(first_target - 1, stop))


def weight_names(loaded: LoadedModel) -> dict[tuple[int, str], str]:
    """Return the parameter name of every linear map of the blocks, by ``(layer, path inside the block)``."""
    require_weights_in_memory(loaded.model, "this quantity of the weights")
    require_plain_weights(loaded.model, "this quantity of the weights")
    names = {id(parameter): name for name, parameter in loaded.model.named_parameters()}
    return {key: names[id(linear_weight(module))] for key, module in loaded.site_map.linear_maps().items()}


def of_layer(loaded: LoadedModel, update: Update, layer: int) -> dict[str, Tensor]:
    """Return the part of an update that changes one block.

    Args:
        loaded: The model.
        update: Change per parameter name.
        layer: Index of the block.

    Returns:
        The changes of that block's weights, by parameter name.
    """
    mine = {name for (index, _), name in weight_names(loaded).items() if index == layer}
    return {name: change for name, change in update.items() if name in mine}


def relative_size(loaded: LoadedModel, update: Update) -> float:
    """Return the norm of an update over the norm of the weights it changes, all taken as one vector.

    Args:
        loaded: The model with the weights before the update.
        update: Change per parameter name.

    Returns:
        ``|dW| / |W|``, over the changed parameters only.
    """
    named = dict(loaded.model.named_parameters())
    change = sum(float(value.double().square().sum()) for value in update.values())
    weights = sum(float(named[name].double().square().sum()) for name in update)
    require_finite("the size of the update", change)
    return (change / weights) ** 0.5


def random_like(update: Update, seed: int) -> dict[str, Tensor]:
    """Return a random update with the norm of ``update`` in every matrix.

    Args:
        update: Change per parameter name.
        seed: Of the random directions.

    Returns:
        A random change of the same norm, shape and data type for every parameter.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, change in update.items():
        noise = torch.randn(change.shape, generator=generator, dtype=torch.float64)
        drawn[name] = (noise * (change.double().norm().cpu() / noise.norm())).to(change)
    return drawn


def scaled(update: Update, factor: float) -> dict[str, Tensor]:
    """Return ``factor * update``.

    Args:
        update: Change per parameter name.
        factor: What every change is multiplied by.

    Returns:
        A new update; the old one is left as it is.
    """
    return {name: factor * change for name, change in update.items()}


def spread(num_layers: int, count: int) -> tuple[int, ...]:
    """Return at most ``count`` layers from the first to the last, evenly spread.

    Args:
        num_layers: Number of blocks of the model.
        count: Most layers to return.

    Returns:
        Indices in order; of one, the middle layer.

    Example:
        >>> spread(30, 4), spread(30, 1), spread(3, 8)
        ((0, 10, 19, 29), (15,), (0, 1, 2))
    """
    if count >= num_layers:
        return tuple(range(num_layers))
    if count == 1:
        return (num_layers // 2,)
    return tuple(round(i * (num_layers - 1) / (count - 1)) for i in range(count))


def explained(measured: Tensor, predicted: Tensor) -> float:
    """Return ``1 - |measured - predicted|^2 / |measured|^2``; nan where nothing moved.

    Args:
        measured: Shifts that were measured, of any shape.
        predicted: Shifts that were predicted, of the same shape.

    Returns:
        At most 1; negative where the prediction is worse than none.

    Example:
        >>> explained(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
        0.75
    """
    require_finite("a shift", measured, predicted)
    whole = float(measured.double().square().sum())
    left = float((measured.double() - predicted.double()).square().sum())
    return 1 - left / whole if whole > 0 else float("nan")


def explained_per_token(measured: Tensor, predicted: Tensor) -> float:
    """Return the median over tokens of :func:`explained`; nan where nothing moved.

    Taken as one vector, all tokens together would say what the few with the longest streams do.

    Args:
        measured: Shifts that were measured ``(... channel)``.
        predicted: Shifts that were predicted, of the same shape.

    Returns:
        The median over the tokens that moved; at most 1.
    """
    require_finite("a shift", measured, predicted)
    whole = measured.double().square().sum(-1)
    left = (measured.double() - predicted.double()).square().sum(-1)
    moved = whole > 0
    return float((1 - left[moved] / whole[moved]).median()) if bool(moved.any()) else float("nan")


def ordinary(stream: Tensor) -> Tensor:
    """Return which tokens (last axis channels) have a stream of at most four times the median length.

    Most models have a few tokens, often the first, whose stream is tens of times longer in the middle layers.
    """
    size = stream.double().norm(dim=-1)
    return size <= OUTLIER * size.median()


def block_tensors(loaded: LoadedModel, ids: Tensor, layers: Sequence[int]) -> dict[int, dict[SiteKind, Tensor]]:
    """Return every site's tensor (``batch token channel``) of the given blocks, the entering stream included.

    Args:
        loaded: The model.
        ids: Tokens ``(batch token)``, without padding.
        layers: Which blocks.

    Returns:
        By layer and kind of site; kinds that the model does not have are left out.

    Cost: one forward pass without the unembedding.
    """
    site_map = loaded.site_map
    wanted = {
        (layer, kind): site_map.resolve(f"{layer}.{kind}")
        for layer in layers
        for kind in SiteKind
        if kind in site_map.description.kinds
    }
    with torch.no_grad(), reading(site_map, dict.fromkeys(wanted.values())) as found:
        decoder_of(loaded.model)(input_ids=ids, use_cache=False)
    tensors: dict[int, dict[SiteKind, Tensor]] = {layer: {} for layer in layers}
    for (layer, kind), site in wanted.items():
        require_finite(f"what the site '{site}' reads", found[site])
        tensors[layer][kind] = found[site]
    return tensors


def streams(loaded: LoadedModel, ids: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """Return ``resid_post`` of the given layers. Cost: one forward pass without the unembedding.

    Args:
        loaded: The model.
        ids: Tokens ``(batch token)``, without padding.
        layers: Which blocks.

    Returns:
        The residual stream behind each block ``(batch token channel)``.
    """
    sites = [Site(layer, SiteKind.RESID_POST) for layer in layers]
    with torch.no_grad(), reading(loaded.site_map, sites) as found:
        decoder_of(loaded.model)(input_ids=ids, use_cache=False)
    for site, value in found.items():
        require_finite(f"what the site '{site}' reads", value)
    return {site.layer: value for site, value in found.items()}


# Positions left out at the start of sequences: their stream is tens of times longer in many models.
SKIP = 1


def flat(tensor: Tensor, skip: int = 0) -> Tensor:
    """Return the tokens of all sequences one below the other, without the first ``skip`` positions of each.

    Args:
        tensor: Activations ``(batch token channel)``.
        skip: Positions left out at the start of each sequence.

    Returns:
        A matrix ``(row channel)``, a row per token.
    """
    return tensor[:, skip:].reshape(-1, tensor.shape[-1])
