r"""P21, P22: oracle steering, adding what fine-tuning would have changed.

The oracle at a site is :math:`\Delta = h_{FT} - h_{base}` per token; adding it gives :math:`h_{FT}` at that site by
construction (P21). At every layer at once that is no longer true: behind a steered layer the stream is already
:math:`h_{FT}`, the block's own output is :math:`F(h_{FT})` and not :math:`F(h_{base})`, and the static oracle counts
what was gained below a second time. Exact are (P22)

.. math:: \Delta_l = h_{FT,l} - h_{current,l} \quad\text{(lockstep)}, \qquad
    \Delta_l = F_l^{FT}(h_{FT,l-1}) - F_l(h_{FT,l-1}) \quad\text{(one step)}.

On the fine-tuned stream the two are one shift, reached by two rules: lockstep reads the steered stream as it arrives,
one step never does. So the second is computed from each block alone, and an error from elsewhere tells them apart:
lockstep takes it away at the next steered layer, one step passes it through the base block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steerscope.equivalence.oracles import lockstep_shift, one_step_shift, oracle_shift
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.parts import relative_error
from steerscope.equivalence.propositions.runs import (
    Pass,
    base_and_tuned,
    block_alone,
    fine_tuning,
    post,
    run_at,
    spread,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.changed_weights import with_update
from steerscope.models.hooks import Edit
from steerscope.sites import Site, SiteKind

GROUP = "oracles"

# h + (h' - h) is h' up to the last bit of h; the norms behind it divide by streams of order one.
EXACT = 1e-12
# A run through all layers amplifies rounding; wrong forms are off by 1e-2 and more.
EXACT_RUN = 1e-10
# Anything above it is no rounding: what must differ, differs by at least this much.
DIFFERENT = 1e-6

# --- the two rules ---


def lockstep_edits(tuned: Pass, sites: Sequence[Site]) -> dict[Site, Edit]:
    """Return edits that add ``h_FT - h`` to whatever h arrives.

    Args:
        tuned: The fine-tuned run, read at the sites.
        sites: Where to edit.

    Returns:
        One edit per site.
    """

    def at(site: Site) -> Edit:
        return lambda h: lockstep_shift(tuned[site], h)

    return {site: at(site) for site in sites}


def one_step_edits(subject: Subject, layers: Sequence[int], update: dict[str, Tensor]) -> dict[Site, Edit]:
    """Return edits that add ``F_FT(h_FT) - F_base(h_FT)``, each block run by itself on the fine-tuned stream.

    Args:
        subject: The model; inside ``subject.ready()``.
        layers: The fine-tuned blocks.
        update: Change per parameter name.

    Returns:
        One edit per block's output, which does not read what arrives there.
    """
    entering = {layer: Site(layer, SiteKind.RESID_PRE) for layer in layers}
    tuned = run_at(subject, entering.values(), update=update)
    shifts = {}
    for layer, site in entering.items():
        block, _ = block_alone(subject, layer)
        on_base = block(tuned[site])
        with with_update(subject.model, update):
            shifts[post(layer)] = one_step_shift(block(tuned[site]), on_base)
    return _fixed(shifts)


# --- checks ---


def _last_token(shift: Tensor) -> Tensor:
    kept = torch.zeros_like(shift)
    kept[:, -1] = shift[:, -1]
    return kept


def _at_last_token(edit: Edit) -> Edit:
    return lambda h: _last_token(edit(h))


def _check_single_layer(subject: Subject) -> Evidence:
    top = len(subject.site_map.blocks) - 1
    layer = min(subject.layer, top - 1) if top else 0  # the last layer is its own case
    base, tuned = base_and_tuned(subject, (layer, top), fine_tuning(subject))
    at, end = post(layer), post(top)
    shift = oracle_shift(tuned[at], base[at])
    steered = run_at(subject, (at,), edits={at: lambda h: shift})
    last = run_at(subject, (at,), edits={at: lambda h: _last_token(shift)})
    final = oracle_shift(tuned[end], base[end])
    at_top = run_at(subject, edits={end: lambda h: final})
    name = f"state at layer {layer}, distance to the fine-tuned one"
    claim = [
        Measurement(name, relative_error(steered[at], tuned[at]), high=EXACT),
        Measurement(
            "logits, the oracle at the last layer", relative_error(at_top.logits, tuned.logits), high=EXACT_RUN
        ),
    ]
    if layer < top:
        off = relative_error(steered.logits, tuned.logits)
        claim.append(Measurement("logits, blocks above fine-tuned too (must differ)", off, low=DIFFERENT))
    controls = (Measurement(f"{name}, last token alone patched", relative_error(last[at], tuned[at]), high=EXACT),)
    return Evidence(tuple(claim), controls)


def _after_an_error(
    subject: Subject, layers: tuple[int, ...], update: dict[str, Tensor], edits: dict[Site, Edit], error: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Make an error below the last fine-tuned block of a run with oracles.

    Returns:
        The state behind that block, the fine-tuned one, and ``F_base(h_FT + e) + F_FT(h_FT) - F_base(h_FT)``.
    """
    last = layers[-1]
    below, behind, entering = post(last - 1), post(last), Site(last, SiteKind.RESID_PRE)
    tuned = run_at(subject, (behind, entering), update=update)
    block, _ = block_alone(subject, last)
    found = run_at(subject, (behind,), edits=edits | {below: _and_then(edits.get(below), error)})[behind]
    return found, tuned[behind], block(tuned[entering] + error) + tuned[behind] - block(tuned[entering])


def _and_then(edit: Edit | None, error: Tensor) -> Edit:
    return (lambda h: error) if edit is None else (lambda h: edit(h) + error)


def _check_every_layer(subject: Subject) -> Evidence:
    layers = spread(subject)
    if len(layers) < 2:
        return Evidence(inapplicable="one block has no layer below it whose gain could be counted twice")
    update = fine_tuning(subject, layers)
    base, tuned = base_and_tuned(subject, layers, update)
    sites = [post(layer) for layer in layers]
    all_layers = len(layers) == len(subject.site_map.blocks)
    lockstep, step = lockstep_edits(tuned, sites), one_step_edits(subject, layers, update)
    exact = run_at(subject, sites, edits=lockstep)
    one_step = run_at(subject, sites, edits=step)
    static = run_at(subject, sites, edits=_fixed({site: oracle_shift(tuned[site], base[site]) for site in sites}))
    last = run_at(subject, sites, edits={site: _at_last_token(edit) for site, edit in step.items()})
    size = 0.1 * tuned[sites[-1]].square().mean().sqrt()
    error = size * subject.draw(*tuned[sites[-1]].shape, salt=230)
    locked, wanted, _ = _after_an_error(subject, layers, update, lockstep, error)
    carried, _, expected = _after_an_error(subject, layers, update, step, error)
    overshoot = [relative_error(static[site], tuned[site]) for site in sites]
    moved = relative_error(base.logits, tuned.logits)
    off = relative_error(static.logits, tuned.logits)
    where = "every layer" if all_layers else f"every fine-tuned layer ({', '.join(map(str, layers))})"
    return Evidence(
        claim=(
            Measurement("logits, lockstep oracle", relative_error(exact.logits, tuned.logits), high=EXACT_RUN),
            Measurement(
                "logits, one-step oracle, F_base run by itself on h_FT",
                relative_error(one_step.logits, tuned.logits),
                high=EXACT_RUN,
            ),
            Measurement(
                "state behind a block that an error e entered, lockstep, against h_FT",
                relative_error(locked, wanted),
                high=EXACT_RUN,
            ),
            Measurement(
                "the same, one step, against F_base(h_FT + e) + F_FT(h_FT) - F_base(h_FT)",
                relative_error(carried, expected),
                high=EXACT_RUN,
            ),
            Measurement(
                "the same, one step, against h_FT (must differ)", relative_error(carried, wanted), low=DIFFERENT
            ),
        ),
        controls=(
            Measurement(
                "logits of the last token, one-step oracle at the last token alone",
                relative_error(last.logits[:, -1], tuned.logits[:, -1]),
                high=EXACT_RUN,
            ),
        ),
        published=(Measurement("logits, static oracle at every layer", off, high=EXACT_RUN),),
        notes=(
            f"oracles added at {where}; without any, the logits are off by {moved:.3g}, with static ones {off:.3g}",
        ),
        series={"overshoot": curve("layer", layers, "static oracles: distance to the fine-tuned state", overshoot)},
    )


def _fixed(shifts: dict[Site, Tensor]) -> dict[Site, Edit]:
    def constant(value: Tensor) -> Edit:
        return lambda h: value

    return {site: constant(value) for site, value in shifts.items()}


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        21,
        GROUP,
        "oracle at one layer",
        "Adding h_FT - h_base at one layer makes the state there the fine-tuned one exactly; the logits differ as long "
        "as layers above were fine-tuned too, and agree when the layer is the last.",
        "Every position is patched; final norm and unembedding are not fine-tuned.",
        Source.POST,
        _check_single_layer,
    ),
    Proposition(
        22,
        GROUP,
        "oracles at every layer",
        "At every layer at once, h_FT - h_current (lockstep) and F_FT(h_FT) - F_base(h_FT) (one step) reproduce the "
        "fine-tuned logits exactly; an error made below a layer is taken away by lockstep and carried on by one step.",
        "Every position is patched at every fine-tuned layer.",
        Source.OURS,
        _check_every_layer,
        published="The oracle h_FT - h_base, defined for one layer, added at every layer: it does not reproduce them.",
    ),
)
