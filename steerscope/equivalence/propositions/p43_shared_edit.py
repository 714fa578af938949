r"""P43, one edit for all tokens: what it cannot make of an update of the map that writes at the same place.

The down projection reads :math:`m_t` and adds :math:`W_d m_t` to the block's output, so an update moves the output by
exactly :math:`\delta_t = \Delta W m_t`, at every size. An edit at the block's output that reads :math:`x_t` adds
:math:`A x_t + b`, with one A and one b for all tokens t of a data set.

**Statement.** Let :math:`\Sigma` be second moments over the n tokens of the data set, covariances if the edit has a
bias, and :math:`\Sigma_{m|x} = \Sigma_{mm} - \Sigma_{mx} \Sigma_{xx}^+ \Sigma_{xm}`. If
:math:`E[\Delta W^T \Delta W] = c I` then

.. math:: \frac{E \min_A \frac1n \sum_t |\Delta W m_t - A x_t|^2}{E \frac1n \sum_t |\Delta W m_t|^2}
    = \frac{tr \Sigma_{m|x}}{tr \Sigma_{mm}},

which is one minus R squared of the best linear prediction of m from x (about the mean, with a bias). Neither the task
nor the outputs of the model above occur in it.

**Proof.** For given :math:`\Delta W` least squares is solved by
:math:`A = \Delta W \Sigma_{mx} \Sigma_{xx}^+`, that is :math:`\Delta W` times the best linear prediction of m, whose
error :math:`e_t = m_t - \Sigma_{mx} \Sigma_{xx}^+ x_t` has second moment :math:`\Sigma_{m|x}`. So the minimum is
:math:`tr(\Delta W \Sigma_{m|x} \Delta W^T) = tr(\Delta W^T \Delta W\, \Sigma_{m|x})`, of expectation
:math:`c\, tr \Sigma_{m|x}`; in the same way the denominator is :math:`c\, tr \Sigma_{mm}`. A bias is one more
channel of x that is always 1; taking it out first leaves covariances. QED.

Any estimator that is linear in the targets will do for :math:`A`: an edit fitted with a ridge on some texts is
:math:`\Delta W` times the ridge prediction of m, so on *other* texts its expected error is one minus the held-out R
squared of m predicted from x.

Only :math:`E[\Delta W^T \Delta W]` matters. A *design* of J updates with
:math:`\sum_j \Delta W_j^T \Delta W_j = I` therefore gives the formula's value exactly; random draws give it up to their
standard error. A ratio of expectations is stated, not the expectation of the ratio. Isotropy is an assumption about
updates, and a real one need not have it: the anisotropic controls are off. Behind a norm on what the MLP writes the
shift is :math:`D_t \Delta W m_t` with a matrix per token: that is P45.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.block_tokens import (
    READS,
    BlockTokens,
    mean_and_error,
    side_by_side,
    without_norm_behind,
    z_score,
)
from steerscope.equivalence.propositions.shared_edit import BIAS, OTHERS, PLAIN, Pair, SharedEdit
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.reach import (
    conditional_second_moment,
    held_out_share,
    unreachable_share,
)
from steerscope.sites import SiteKind

GROUP = "one edit for all tokens"

# Two ways to the same least squares; channels of real streams differ a thousandfold in size.
EXACT = 1e-6
# Random draws: standard errors, and on small blocks, where draws cost little, one percent of the formula as well for
# the edit that leaves most; what the others leave is small, and its standard error no small part of it.
ERRORS = 5.0
PERCENT = 0.01
# Rows of random updates: enough for one percent on small blocks, one draw or two on real ones.
ROWS, FEW_ROWS = 20_000, 1000
SMALL = 64
# Output channels of random updates that one least squares serves.
CHUNK = 2000


def isotropic_design(subject: Subject, out: int, into: int, salt: int = 0) -> list[Tensor]:
    """Return as few updates ``(out, into)`` as have ``sum_j dW_j^T dW_j = I``.

    Args:
        subject: Seeds the draw.
        out: Channels written.
        into: Channels read.
        salt: Tells draws of one check apart.

    Returns:
        ``ceil(into / out)`` matrices, the rows of one with orthonormal columns.
    """
    count = -(-into // out)
    return list(torch.linalg.qr(subject.draw(count * out, into, salt=salt)).Q.reshape(count, out, into))


def formulas(edit: SharedEdit, hidden: Tensor) -> dict[str, float]:
    """Return what P43 says an edit leaves, by kind.

    Args:
        edit: What it reads.
        hidden: m, ``(token, d_ff)``, the tokens fitted on first.

    Returns:
        A share per kind of :meth:`SharedEdit.errors`.
    """
    n = len(edit.fitted)
    return {
        PLAIN: unreachable_share(edit.fitted, hidden[:n]),
        BIAS: unreachable_share(edit.fitted, hidden[:n], bias=True),
        OTHERS: held_out_share(edit.fitted, hidden[:n], edit.others, hidden[n:], edit.ridge),
    }


def _measured(
    edits: Mapping[str, SharedEdit], kinds: Sequence[str], shifts: Iterable[Tensor]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return, by edit and kind, the share left over all shifts and its standard error."""
    # Output channels of isotropic draws are independent draws themselves.
    pairs: dict[tuple[str, str], list[Pair]] = {(name, kind): [] for name in edits for kind in kinds}
    for shift in shifts:
        for name, kind in pairs:
            pairs[name, kind].append(edits[name].errors(kind, shift))
    return {key: mean_and_error(*(torch.cat(one) for one in zip(*found, strict=True))) for key, found in pairs.items()}


def _shifts(data: BlockTokens, changes: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield shifts ``(row, draw*d)`` side by side, :data:`CHUNK` channels at once for one least squares."""
    module, waiting = data.subject.block.mlp_write, []
    out = data.subject.site_map.d_model
    for change in changes:
        waiting.append(change)
        if len(waiting) * out >= CHUNK:
            yield side_by_side(data.shifts(module, torch.stack(waiting)))
            waiting = []
    if waiting:
        yield side_by_side(data.shifts(module, torch.stack(waiting)))


def _check_shared_edit(subject: Subject) -> Evidence:
    return without_norm_behind(subject, _on_data)


def _on_data(subject: Subject, data: BlockTokens) -> Evidence:
    hidden = data.rows(data.tensors[SiteKind.MLP_HIDDEN])
    out, into = subject.site_map.d_model, hidden.shape[1]
    small = out <= SMALL
    edits = {name: data.edit(name) for name in READS if data.identifies(name)}
    expected = {name: formulas(edit, hidden) for name, edit in edits.items()}
    notes = [f"{data.name}, {name}: as many channels as tokens, any shift fits" for name in READS if name not in edits]
    if "h'" not in edits:
        return Evidence(notes=tuple(notes))

    design = isotropic_design(subject, out, into, salt=4310)
    exact = _measured(edits, (PLAIN, BIAS, OTHERS), _shifts(data, design))
    count = -(-(ROWS if small else FEW_ROWS) // out)
    draws = (subject.draw(out, into, salt=4320 + draw) for draw in range(count))
    drawn = _measured(edits, (BIAS, OTHERS), _shifts(data, draws))
    claim = []
    for (name, kind), (share, _) in exact.items():
        label = f"{data.name}, reads {name}, {kind}: isotropic design over formula, minus 1"
        claim.append(_relative(label, share, expected[name][kind], EXACT))
    for (name, kind), found in drawn.items():
        label, formula = f"{data.name}, reads {name}, {kind}", expected[name][kind]
        errors = z_score(found, formula)
        claim.append(Measurement(f"{label}: random updates minus formula, standard errors", errors, -ERRORS, ERRORS))
        if small and name == "h'":
            claim.append(_relative(f"{label}: random updates over formula, minus 1", found[0], formula, PERCENT))

    notes += [
        f"{data.name}, reads {name}: R^2 leaves "
        + ", ".join(
            f"{expected[name][kind]:.4f} {kind} ({count} random updates: {drawn[name, kind][0]:.4f} +- "
            f"{drawn[name, kind][1]:.4f})"
            for kind in (BIAS, OTHERS)
        )
        for name in edits
    ]
    # Updates that read most of all what no edit can: not isotropic.
    left = conditional_second_moment(edits["h'"].fitted, hidden[: data.fitted], bias=True)
    skewed = _measured({"h'": edits["h'"]}, (BIAS,), _shifts(data, (change @ left for change in design)))["h'", BIAS][0]
    half = unreachable_share(edits["h'"].fitted[::2], hidden[: data.fitted : 2], bias=True)
    share, formula = exact["h'", BIAS][0], expected["h'"][BIAS]
    controls = [
        _relative(f"{data.name}, reads h': anisotropic updates over formula, minus 1", skewed, formula, PERCENT),
        _relative(f"{data.name}, reads h': over the formula of half of the tokens, minus 1", share, half, PERCENT),
    ]
    if "y" in edits:
        other = expected["y"][BIAS]
        controls.append(_relative(f"{data.name}, reads h': over the formula of y, minus 1", share, other, PERCENT))
    return Evidence(tuple(claim), tuple(controls), notes=tuple(notes))


def _relative(name: str, measured: float, expected: float, tolerance: float) -> Measurement:
    return Measurement(name, measured / max(expected, 1e-300) - 1, -tolerance, tolerance)


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        43,
        GROUP,
        "what one edit leaves of an update",
        "Of isotropic updates of W_d, edits A x + b at the block's output, one for all tokens of a data set, leave on "
        "average tr Cov(m|x) / tr Cov(m): one minus R^2 of m predicted from x, on other texts one minus held-out R^2, "
        "whatever the task.",
        "E[DW^T DW] is a multiple of I; no norm follows what the MLP writes. Without a bias: second moments.",
        Source.OURS,
        _check_shared_edit,
    ),
)
