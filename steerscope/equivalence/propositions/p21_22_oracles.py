r"""P21, P22: oracle steering, adding what fine-tuning would have changed.

The oracle at a site is :math:`\Delta = h_{FT} - h_{base}` per token; adding it gives :math:`h_{FT}` at that site by
construction (P21). At every layer at once that is no longer true: behind a steered layer the stream is already
:math:`h_{FT}`, the block's own output is :math:`F(h_{FT})` and not :math:`F(h_{base})`, and the static oracle counts
what was gained below a second time. Exact are (P22)

.. math:: \Delta_l = h_{FT,l} - h_{current,l} \quad\text{(lockstep)}, \qquad
    \Delta_l = F_l^{FT}(h_{FT,l-1}) - F_l(h_{FT,l-1}) \quad\text{(one step)}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.equivalence.oracles import lockstep_shift, one_step_shift, oracle_shift
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import curve, relative_error
from steerscope.equivalence.propositions.runs import (
    base_and_tuned,
    fine_tuning,
    post,
    run_at,
    spread,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.hooks import Edit
from steerscope.sites import Site

GROUP = "oracles"

# h + (h' - h) is h' up to the last bit of h; the norms behind it divide by streams of order one.
EXACT = 1e-12
# A run through all layers amplifies rounding; wrong forms are off by 1e-2 and more.
EXACT_RUN = 1e-10
# Anything above it is no rounding: what must differ, differs by at least this much.
DIFFERENT = 1e-6

# --- checks ---


def _last_token(shift: Tensor) -> Tensor:
    kept = torch.zeros_like(shift)
    kept[:, -1] = shift[:, -1]
    return kept


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


def _check_every_layer(subject: Subject) -> Evidence:
    layers = spread(subject)
    if len(layers) < 2:
        return Evidence(inapplicable="one block has no layer below it whose gain could be counted twice")
    base, tuned = base_and_tuned(subject, layers, fine_tuning(subject, layers))
    sites = [post(layer) for layer in layers]
    all_layers = len(layers) == len(subject.site_map.blocks)

    arriving: dict[Site, Tensor] = {}

    def lockstep(site: Site) -> Edit:
        def edit(h: Tensor) -> Tensor:
            arriving[site] = h  # below it every state is the fine-tuned one, so this is F_base(h_FT)
            return lockstep_shift(tuned[site], h)

        return edit

    exact = run_at(subject, sites, edits={site: lockstep(site) for site in sites})
    steps = {site: one_step_shift(tuned[site], arriving[site]) for site in sites}
    one_step = run_at(subject, sites, edits=_fixed(steps))
    static = run_at(subject, sites, edits=_fixed({site: oracle_shift(tuned[site], base[site]) for site in sites}))
    last = run_at(subject, sites, edits=_fixed({site: _last_token(step) for site, step in steps.items()}))
    overshoot = [relative_error(static[site], tuned[site]) for site in sites]
    moved = relative_error(base.logits, tuned.logits)
    where = "every layer" if all_layers else f"every fine-tuned layer ({', '.join(map(str, layers))})"
    return Evidence(
        claim=(
            Measurement("logits, lockstep oracle", relative_error(exact.logits, tuned.logits), high=EXACT_RUN),
            Measurement("logits, one-step oracle", relative_error(one_step.logits, tuned.logits), high=EXACT_RUN),
        ),
        controls=(
            Measurement(
                "logits of the last token, one-step oracle at the last token alone",
                relative_error(last.logits[:, -1], tuned.logits[:, -1]),
                high=EXACT_RUN,
            ),
        ),
        published=(
            Measurement(
                "logits, static oracle at every layer", relative_error(static.logits, tuned.logits), high=1e-10
            ),
        ),
        notes=(f"oracles added at {where}; without any, the logits are off by {moved:.3g}",),
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
        "fine-tuned logits exactly.",
        "Every position is patched at every fine-tuned layer.",
        Source.OURS,
        _check_every_layer,
        published="The oracle h_FT - h_base, defined for one layer, added at every layer: it overshoots.",
    ),
)
