r"""P46, attention written out: the first-order shift of what it writes under updates of its four maps.

The formula stands at :func:`steerscope.equivalence.attention_forms.attention_shift`: an update of values or of the
output map moves what is written through weights alpha that stay, an update of queries or keys moves alpha itself,

.. math:: \delta\alpha_{tu} = \alpha_{tu} \Big(\delta s_{tu} - \sum_w \alpha_{tw} \delta s_{tw}\Big),

and a key moves the output of every later token. Rotary embeddings turn a shift of a query or a key like the query or
key itself, a norm on queries and keys passes it through the norm's derivative, groups of query heads share the shift of
one key head, biases shift like one more input channel, and a soft cap multiplies :math:`\delta s` by its slope. It is
compared with a jvp through the model, map by map; the model computes none of it by these formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from steerscope.equivalence.attention_forms import (
    AttentionForm,
    AttentionMaps,
    attention,
    attention_shift,
    attention_state,
    cap_slope,
    joined_heads,
    score_shift,
    softmax_shift,
)
from steerscope.equivalence.propositions.attention_parts import (
    attention_call,
    attention_form,
    attention_maps,
    attention_parameters,
)
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.norms import norm_parts
from steerscope.equivalence.propositions.p09_10_norm_and_skip import norm_jacobian
from steerscope.equivalence.propositions.parts import relative_error, run
from steerscope.equivalence.propositions.runs import SECOND_ORDER
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import slope_of
from steerscope.equivalence.shifts import first_order_shift
from steerscope.sites import Site, SiteKind

GROUP = "attention"

# Two orders of the same products in float64; the softmax of long streams loses some digits.
EXACT = 1e-11
SIZES = (1e-2, 1e-3, 1e-4)
NAMES = ("query", "key", "value", "output")


def drawn_update(subject: Subject, maps: AttentionMaps) -> AttentionMaps:
    """Return random changes of all maps with the root mean square of each; biases that are zero move like one channel.

    Args:
        subject: Seeds the draw.
        maps: The attention's maps.

    Returns:
        Changes in the same shapes.
    """
    sizes = [one.square().mean().sqrt() for one in maps[:4]]
    weights = [s * subject.draw(*one.shape, salt=4600 + i) for i, (one, s) in enumerate(zip(maps, sizes, strict=False))]
    biases = [
        s * subject.draw(*one.shape, salt=4610 + i) for i, (one, s) in enumerate(zip(maps[4:], sizes, strict=True))
    ]
    return AttentionMaps(*weights, *biases)


def only(update: AttentionMaps, name: str) -> AttentionMaps:
    """Return an update of one map and its bias, the other changes zero.

    Args:
        update: Of all maps.
        name: One of :data:`NAMES`.

    Returns:
        Changes in the same shapes.
    """
    return AttentionMaps(
        *(
            change if field in (name, f"{name}_bias") else torch.zeros_like(change)
            for field, change in zip(update._fields, update, strict=True)
        )
    )


def _existing(subject: Subject, update: AttentionMaps) -> AttentionMaps:
    """Return an update without changes of biases that the model does not have."""
    reads = [getattr(module, "bias", None) is not None for module in subject.block.attn_reads]
    reads = reads * 3 if len(reads) == 1 else reads
    has = [*reads, getattr(subject.block.attn_write, "bias", None) is not None]
    biases = [bias if there else torch.zeros_like(bias) for bias, there in zip(update[4:], has, strict=True)]
    return AttentionMaps(*update[:4], *biases)


def _behind_norm(subject: Subject, written: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the derivative of the norm on what attention writes at ``written``, the identity where there is none."""
    norm = subject.block.attn_post_norm
    if norm is None:
        return lambda shift: shift
    parts = norm_parts(norm, written.shape[-1])
    matrices = torch.stack([norm_jacobian(x, parts, parts.eps) for x in written.flatten(0, 1)])
    return lambda shift: (matrices @ shift.flatten(0, 1)[..., None])[..., 0].reshape(shift.shape)


def with_term_missing(
    missing: str, z: Tensor, maps: AttentionMaps, change: AttentionMaps, form: AttentionForm
) -> Tensor:
    """Return the formula of a change of queries or keys with one term left out: a wrong form.

    Args:
        missing: ``"mean"`` of the softmax's derivative, ``"rotation"`` or ``"norm"`` of what moves, or ``"cap"``.
        z: What attention reads, ``batch token d``.
        maps: Its maps.
        change: Of queries or keys.
        form: The rest.

    Returns:
        ``batch token d``.
    """
    state = attention_state(z, maps, form)
    moving = {
        "rotation": replace(form, rotation=None),
        "norm": replace(form, query_norm=None, key_norm=None),
    }.get(missing, form)
    d_scores = score_shift(z, maps, change, moving, state.queries, state.keys)
    if form.soft_cap is not None and missing != "cap":
        d_scores = d_scores * cap_slope(state.raw_scores, form.soft_cap)
    d_weights = state.weights * d_scores if missing == "mean" else softmax_shift(state.weights, d_scores)
    return joined_heads(d_weights @ state.values) @ maps.output.T


def _check_attention(subject: Subject) -> Evidence:
    z, kwargs = attention_call(subject)
    form = attention_form(subject, kwargs, z.shape[1])
    maps = attention_maps(subject, form.d_head)
    behind = _behind_norm(subject, attention(z, maps, form))
    update = _existing(subject, drawn_update(subject, maps))
    site = str(Site(subject.layer, SiteKind.ATTN_OUT))
    inputs = {"input_ids": subject.input_ids}

    def through_model(change: AttentionMaps) -> Tensor:
        named = attention_parameters(subject, change, form.d_head)
        return first_order_shift(subject.model, named, inputs, (site,))[site]

    before = run(subject, [SiteKind.ATTN_OUT])[SiteKind.ATTN_OUT]
    post = subject.block.attn_post_norm
    own = attention(z, maps, form)
    claim = [
        Measurement(
            "what attention writes, relative error",
            relative_error(own if post is None else post(own), before),
            high=EXACT,
        )
    ]
    found: dict[str, Tensor] = {}
    for name in NAMES:
        change = only(update, name)
        found[name] = through_model(change)
        error = relative_error(behind(attention_shift(z, maps, change, form)), found[name])
        claim.append(Measurement(f"d{name}: formula against jvp through the model, relative", error, high=EXACT))
    whole = behind(attention_shift(z, maps, update, form))
    claim.append(Measurement("all four at once, relative", relative_error(whole, through_model(update)), high=EXACT))
    named = attention_parameters(subject, update, form.d_head)
    weights = dict(subject.model.named_parameters())
    left = []
    for size in SIZES:
        moved = {key: weights[key] + size * change for key, change in named.items()}
        after = run(subject, [SiteKind.ATTN_OUT], weights=moved)[SiteKind.ATTN_OUT]
        left.append(float((after - before - size * whole).norm()))
    claim.append(Measurement("remainder of a real change: slope", slope_of(SIZES, left), *SECOND_ORDER))
    return Evidence(tuple(claim), _controls(z, maps, update, form, behind, found), notes=_notes(form, maps))


def _controls(
    z: Tensor,
    maps: AttentionMaps,
    update: AttentionMaps,
    form: AttentionForm,
    behind: Callable[[Tensor], Tensor],
    found: dict[str, Tensor],
) -> tuple[Measurement, ...]:
    """Return the formula with a term left out: each has to be wrong for the maps it is about."""

    def control(what: str, name: str, shift: Tensor) -> Measurement:
        return Measurement(f"d{name}: {what}, relative", relative_error(behind(shift), found[name]), high=EXACT)

    missing = {
        "softmax's derivative without its mean": ("mean", ("query", "key")),
        "no rotation of what moves": ("rotation", ("query", "key") if form.rotation else ()),
        "no derivative of the norm": ("norm", ("query", "key") if form.query_norm else ()),
        "no slope of the cap": ("cap", ("query",) if form.soft_cap else ()),
    }
    controls = [
        control(what, name, with_term_missing(term, z, maps, only(update, name), form))
        for what, (term, names) in missing.items()
        for name in names
    ]
    values = only(update, "value")
    groups = maps.query.shape[0] // maps.value.shape[0]
    own = (z @ values.value.T + values.value_bias).unflatten(-1, (-1, form.d_head))
    alone = own.repeat_interleave(groups, dim=-2).flatten(-2) @ maps.output.T
    controls.append(control("a value moves its own token alone", "value", alone))
    if len(maps.value) > form.d_head:
        swapped = (
            one.unflatten(0, (-1, form.d_head)).flip(0).flatten(0, 1) for one in (values.value, values.value_bias)
        )
        other = values._replace(**dict(zip(("value", "value_bias"), swapped, strict=True)))
        controls.append(control("key and value heads in another order", "value", attention_shift(z, maps, other, form)))
    return tuple(controls)


def _notes(form: AttentionForm, maps: AttentionMaps) -> tuple[str, ...]:
    parts = []
    if form.rotation is not None:
        parts.append(f"rotary embeddings of {form.rotation[0].shape[-1]} of {form.d_head} channels")
    if len(maps.query) != len(maps.key):
        parts.append(f"groups of {len(maps.query) // len(maps.key)} query heads")
    if form.query_norm is not None:
        parts.append("norms on queries and keys")
    if any(bool(bias.any()) for bias in maps[4:]):
        parts.append("biases")
    if form.soft_cap is not None:
        parts.append("a soft cap")
    return ("this attention has " + (", ".join(parts) or "none of the extras"),)


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        46,
        GROUP,
        "attention's first-order shift",
        "dA_t = DW_O a_t + W_O sum_u (dalpha_tu v_u + alpha_tu DW_v z_u), dalpha_tu = alpha_tu (ds_tu - sum_w alpha_tw "
        "ds_tw), ds_tu = kappa (R_t D_Nq DW_q z_t . k_u + q_t . R_u D_Nk DW_k z_u): with rotary embeddings, groups, "
        "norms on queries and keys, biases and a soft cap.",
        "What attention reads does not move.",
        Source.OURS,
        _check_attention,
    ),
)
