r"""Steering vectors from contrast pairs: what a model's activations differ by between two sets of texts.

Nothing is trained: each text runs once. Of the activations :math:`x^+_i` and :math:`x^-_i` of pair i at a site,

* ``mean`` gives :math:`v = \frac1n \sum_i (x^+_i - x^-_i)`, the difference of means (contrastive activation addition);
* ``pca`` gives the direction u that holds most of the differences' squares (their first principal component, not
  centred: centring would take the mean difference out), with the length of the mean difference along it,
  :math:`v = u\, u \cdot \frac1n \sum_i (x^+_i - x^-_i)`. It points from the negatives to the positives.

So strength 1 moves by as much as the two sets differ on average, with either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.finite import require_finite
from steerscope.models.hooks import reading
from steerscope.models.lengths import batches_within, context_of, switch_length
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import device_of
from steerscope.models.site_map import SiteMap, find_sites
from steerscope.models.tokens import require_known_tokens, text_tokens
from steerscope.models.wrappers import decoder_of, in_evaluation_mode, language_model, require_model
from steerscope.sites import Site, one_or_several
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import FixedVector
from steerscope.steering.model import SteeringModel, get_steering_model
from steerscope.steering.passes import passes_on
from steerscope.steering.positions import Positions

METHODS = ("mean", "pca")
_RULES = ("all", "first", "last")


@dataclass(frozen=True, eq=False)
class ContrastVectors:
    """Vectors that lead from the negatives to the positives.

    Attributes:
        vectors: ``(width)`` in float64 by site, in the order of computation.
        explained: Part of the squared differences of pairs that lies along the vector, 0 to 1; empty where texts are no
            pairs.
        method: ``mean`` or ``pca``.
        positions: Which tokens of each text were averaged.
        texts: How many positives and negatives.
    """

    vectors: Mapping[str, Tensor]
    explained: Mapping[str, float]
    method: str
    positions: str
    texts: tuple[int, int]

    def __str__(self) -> str:
        rows = [f"{self.method} of {self.texts[0]} positives and {self.texts[1]} negatives, tokens: {self.positions}"]
        for site, vector in self.vectors.items():
            along = f", {self.explained[site]:.0%} of the pairs' differences" if site in self.explained else ""
            rows.append(f"  {site}: length {float(vector.norm()):.3g}{along}")
        return "\n".join(rows)

    def put_on(
        self,
        model: nn.Module | LoadedModel,
        *,
        strength: float = 1.0,
        positions: str = "all",
        adapter_name: str = "default",
        is_trainable: bool = False,
    ) -> SteeringModel:
        """Put the vectors on a model as an adapter of family ``vector``.

        Args:
            model: The model they are of; on one that is steered already they become a further adapter.
            strength: What they are multiplied by (:meth:`SteeringModel.set_strength`).
            positions: Which tokens are edited.
            adapter_name: What the adapter is called.
            is_trainable: Whether training goes on from the vectors; otherwise they are frozen.

        Returns:
            The steered model, in evaluation mode unless ``is_trainable``; one that was steered already acts as before.

        Raises:
            InputError: The model lacks a site, or its sites have other widths.
        """
        config = SteeringConfig(tuple(self.vectors), "vector", positions=positions)
        if isinstance(model, SteeringModel):
            steering = model
            steering.add_adapter(adapter_name, config)
        else:
            steering = get_steering_model(model, config, adapter_name=adapter_name)
        try:
            adapter = steering.adapter(adapter_name)
            steering.set_strength(strength, adapter_name)
            for site in adapter.sites:
                _fill(adapter.edit_at(site), self.vectors[str(site)], site)
        except BaseException:
            if steering is model:
                steering.delete_adapter(adapter_name)
            else:
                steering.unload()
            raise
        adapter.edits.requires_grad_(is_trainable)
        if steering is not model and not is_trainable:
            steering.eval()
        return steering


@torch.no_grad()
def _fill(edit: Any, vector: Tensor, site: Site) -> None:
    assert isinstance(edit, FixedVector)
    if edit.v.shape != vector.shape:
        raise InputError(
            f"the vector at '{site}' has {len(vector)} channels, and this model's site {len(edit.v)}. Use the model "
            "that the vectors were made of."
        )
    edit.v.copy_(vector)


def contrast_vectors(
    model: LoadedModel | nn.Module,
    positives: Sequence[str | Sequence[int]],
    negatives: Sequence[str | Sequence[int]],
    *,
    sites: Iterable[Site | str] | Site | str,
    method: str = "mean",
    positions: str = "last",
    tokenizer: Any = None,
    batch_size: int = 16,
) -> ContrastVectors:
    """Return the vectors by which activations of two sets of texts differ; nothing is trained.

    Args:
        model: What :func:`steerscope.load_model` returned, or a model of transformers with its ``tokenizer``.
        positives: Texts that show what is wanted, or their token ids. A chat model's are made with
            ``apply_chat_template(..., tokenize=False)``.
        negatives: Texts that show the opposite; the i-th belongs to the i-th positive, which ``pca`` needs.
        sites: Where, ``"12.resid_post"``, or a kind alone for every layer; one or several.
        method: ``mean``, or ``pca`` (the first principal component of pairs' differences).
        positions: Which tokens of each text are averaged: ``last``, ``last:n``, ``first:n`` or ``all``.
        tokenizer: For texts, where ``model`` does not have it.
        batch_size: Texts per pass.

    Returns:
        A vector per site; :meth:`ContrastVectors.put_on` makes a steered model of them.

    Raises:
        InputError: No texts, texts without tokens or longer than the model reads, no pairs where pairs are needed,
            unknown sites, methods or positions, a model that is steered at the moment, or sets that do not differ.

    Cost: one pass per text, without gradients; memory for a batch's activations at the sites.

    Example:
        >>> vectors = contrast_vectors(loaded, ["I love it."], ["I hate it."], sites="1.resid_post")  # doctest: +SKIP
        >>> steered = vectors.put_on(loaded, strength=2.0)  # doctest: +SKIP
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; valid: {', '.join(METHODS)}.")
    rule = Positions.parse(positions)
    if rule.rule not in _RULES:
        raise InputError(
            f"[[positions]] is {positions!r}; of whole texts, one averages 'last', 'last:n', 'first:n' or 'all'."
        )
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"[[batch_size]] is {batch_size!r}; expected a whole number of at least 1.")
    inner = model.model if isinstance(model, LoadedModel) else model
    require_model(inner)
    watching = passes_on(decoder_of(inner))
    if watching is not None and watching.is_active:
        raise InputError(
            "this model is steered, and vectors would be those of the steered model. unload() the edits first, or call "
            "contrast_vectors() inside disable_adapter()."
        )
    tokenizer = model.tokenizer if isinstance(model, LoadedModel) and tokenizer is None else tokenizer
    rows = [_ids(texts, name, inner, tokenizer) for texts, name in ((positives, "positives"), (negatives, "negatives"))]
    are_pairs = len(rows[0]) == len(rows[1])
    if method == "pca" and (not are_pairs or len(rows[0]) < 2):
        raise InputError(
            f"method 'pca' needs two pairs or more, got {len(rows[0])} positives and {len(rows[1])} negatives. Give "
            "the i-th negative for the i-th positive, or use method='mean'."
        )
    site_map = model.site_map if isinstance(model, LoadedModel) else find_sites(inner)
    names = tuple(str(site) for site in one_or_several(sites))
    resolved = SteeringConfig(names, "vector").resolve(site_map)
    read = _means(inner, site_map, resolved, [*rows[0], *rows[1]], rule, batch_size)
    vectors, explained = {}, {}
    for site in resolved:
        above, below = read[site][: len(rows[0])], read[site][len(rows[0]) :]
        vector = above.mean(0) - below.mean(0)
        if method == "pca":
            direction = torch.linalg.svd(above - below, full_matrices=False).Vh[0]
            vector = direction * (direction @ vector)
        require_finite(f"the vector at '{site}'", vector, advice="Load the model in float32.")
        length = float(vector.norm())
        # Equal texts differ by what batches round.
        if length <= 1e-6 * float(read[site].norm(dim=1).mean()):
            raise InputError(
                f"positives and negatives do not differ at '{site}' over the tokens {positions!r}; a contrast needs "
                "texts that do. Do they end alike? Other positions, a later site or other texts may differ."
            )
        vectors[str(site)] = vector
        if are_pairs:
            along = (above - below) @ (vector / length)
            explained[str(site)] = float(along.square().sum() / (above - below).square().sum())
    return ContrastVectors(vectors, explained, method, rule.text, (len(rows[0]), len(rows[1])))


def _ids(texts: Any, name: str, model: nn.Module, tokenizer: Any) -> list[list[int]]:
    """Return the token ids of texts."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise InputError(f"[[{name}]] is {texts!r:.80}; expected a list of texts, at least one.")
    found: list[list[int]] = []
    for text in texts:
        if isinstance(text, str):
            if tokenizer is None:
                raise InputError("texts need the model's tokenizer; pass tokenizer=, or what load_model() returned.")
            found.append(text_tokens(text, tokenizer))
        elif isinstance(text, Sequence | Tensor) and all(type(token) is int for token in list_of(text)):
            found.append(list_of(text))
        else:
            raise InputError(f"[[{name}]] holds {text!r:.80}; expected a text, or its token ids.")
        if not found[-1]:
            raise InputError(f"[[{name}]] holds {text!r}, which has no token. Leave it out.")
    if tokenizer is not None:
        require_known_tokens(found, tokenizer, model)
    longest, limit = max(map(len, found)), context_of(model)
    if limit is not None and longest > limit:
        raise InputError(f"one of the {name} has {longest} tokens, and the model reads {limit}. Give shorter texts.")
    return found


def list_of(tokens: Sequence[int] | Tensor) -> list[int]:
    """Return token ids as a list."""
    return tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)


@torch.no_grad()
def _means(
    model: nn.Module,
    site_map: SiteMap,
    sites: Sequence[Site],
    rows: Sequence[list[int]],
    rule: Positions,
    batch_size: int,
) -> dict[Site, Tensor]:
    """Return what sites read, averaged over the tokens of each text, ``(text width)`` in float64."""
    found = {site: torch.empty(len(rows), site_map.width(site), dtype=torch.float64) for site in sites}
    device = device_of(model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with in_evaluation_mode(model):
        for batch in batches_within(order, lambda i: len(rows[i]), batch_size, switch_length(model)):
            width = max(len(rows[i]) for i in batch)
            ids, mask, taken = (torch.zeros(len(batch), width, dtype=torch.long) for _ in range(3))
            for at, i in enumerate(batch):
                length = len(rows[i])
                ids[at, :length], mask[at, :length] = torch.tensor(rows[i]), 1
                first = max(0, length - rule.count) if rule.rule == "last" else 0
                end = min(length, rule.count) if rule.rule == "first" else length
                taken[at, first:end] = 1
            with reading(site_map, list(sites)) as seen:
                language_model(model)(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            weights = taken.double() / taken.sum(1, keepdim=True)
            for site in sites:
                # What padding reads may be anything, NaN too: it is left out, not multiplied by zero.
                value = seen[site].double().cpu().masked_fill(taken[..., None] == 0, 0)
                found[site][batch] = torch.einsum("bt,btc->bc", weights, value)
    return found
