"""Formulas made wrong, one row each: some verdict on the random blocks has to notice. Tried by test_mutations.

A row names the proposition, what is wrong, the formula, and what stands in its place (made from the right one). The
formula is replaced wherever the theory's modules use it, so that a closed form counts for every check that reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from steerscope.equivalence import closed_forms as forms
from steerscope.equivalence import divergence as kl
from steerscope.equivalence import kernels, oracles, subspaces, tangents
from steerscope.equivalence.propositions import p03_04_05_second_order as second_order
from steerscope.equivalence.propositions import p06_row_scaling as rows
from steerscope.equivalence.propositions import p07_08_11_column_space as columns
from steerscope.equivalence.propositions import p09_10_norm_and_skip as norm
from steerscope.equivalence.propositions import p12_13_16_17_skip as skip
from steerscope.equivalence.propositions import p14_15_reft as reft
from steerscope.equivalence.propositions import p18_19_projection as projection
from steerscope.equivalence.propositions import p20_second_moments as moments
from steerscope.equivalence.propositions import p21_22_oracles as two_rules
from steerscope.equivalence.propositions import p23_propagation as propagation
from steerscope.equivalence.propositions import p24_25_lipschitz as lipschitz
from steerscope.equivalence.propositions import p26_27_28_linear_oracles as linear_oracles
from steerscope.equivalence.propositions import p29_30_31_steering_forms as steering
from steerscope.equivalence.propositions import p32_gauge as gauge
from steerscope.equivalence.propositions import p33_joint as joint
from steerscope.equivalence.propositions import p34_35_36_context as context
from steerscope.equivalence.propositions import p37_heads as heads
from steerscope.equivalence.propositions import p38_tangent as tangent
from steerscope.equivalence.propositions import p39_coverage as coverage
from steerscope.equivalence.propositions import p40_identifiability as identifiability
from steerscope.equivalence.propositions import p41_delta_kl as delta
from steerscope.equivalence.propositions import p42_arithmetic as arithmetic

Formula = Callable[..., Any]


@dataclass(frozen=True)
class Mutation:
    """One formula made wrong.

    Attributes:
        number: The proposition whose verdict has to change.
        what: What is wrong, in a few words.
        formula: The right one.
        mutate: From the right one to the wrong one.
    """

    number: int
    what: str
    formula: Formula
    mutate: Callable[[Formula], Formula]

    @property
    def name(self) -> str:
        return f"P{self.number} {self.formula.__name__}: {self.what}"


def scaled(factor: float) -> Callable[[Formula], Formula]:
    """Return a mutation: the result times ``factor``."""
    return lambda right: lambda *args: factor * right(*args)


def instead(wrong: Formula) -> Callable[[Formula], Formula]:
    """Return a mutation: another function."""
    return lambda right: wrong


def each(change: Callable[[Any], Any]) -> Callable[[Formula], Formula]:
    """Return a mutation: ``change`` of the result."""
    return lambda right: lambda *args: change(right(*args))


# --- closed forms of an MLP with one part wrong ---


def gated_shift(z, weights, update, activation, *, without_up=False, slope=forms.activation_slope):
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    d_g, d_u = z @ update.gate.T, z @ update.up.T
    phi = activation(a_g)
    inner = slope(activation, a_g) * d_g * (1 if without_up else a_u) + phi * d_u
    return (phi * a_u) @ update.down.T + inner @ weights.down.T


def value(activation, x):
    return activation(x)


def plain_shift_without_slope(z, weights, update, activation):
    a = z @ weights.first.T + weights.first_bias
    d_a = z @ update.first.T + update.first_bias
    return activation(a) @ update.second.T + update.second_bias + d_a @ weights.second.T


def jacobian_with_negative_ungated_path(z, weights, activation):
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    gate_rows = (forms.activation_slope(activation, a_g) * a_u).unsqueeze(-1) * weights.gate
    return weights.down @ (gate_rows - activation(a_g).unsqueeze(-1) * weights.up)


def jacobian_of_plain_without_slope(z, weights, activation):
    return weights.second @ weights.first


def second_order_without_cross_term(z, weights, update, activation):
    none = torch.zeros_like(update.down)
    return RIGHT_SECOND_ORDER(z, weights, update._replace(down=none), activation)


RIGHT_SECOND_ORDER = forms.gated_weight_second_order
EXPANSIONS = [
    Mutation(1, "without a_u", forms.gated_weight_shift, instead(lambda *a: gated_shift(*a, without_up=True))),
    Mutation(1, "phi for phi'", forms.gated_weight_shift, instead(lambda *a: gated_shift(*a, slope=value))),
    Mutation(1, "1% off", forms.gated_weight_shift, scaled(1.01)),
    Mutation(1, "plain MLP without phi'", forms.plain_weight_shift, instead(plain_shift_without_slope)),
    Mutation(1, "plain MLP without the update of the second bias", forms.plain_weight_shift,
             lambda right: lambda z, w, u, phi: right(z, w, u, phi) - u.second_bias),
    Mutation(2, "1% off", forms.gated_input_shift, scaled(1.01)),
    Mutation(2, "plain, 1% off", forms.plain_input_shift, scaled(1.01)),
    Mutation(2, "transposed", forms.gated_input_jacobian, each(lambda a: a.mT)),
    Mutation(2, "plain without phi'", forms.plain_input_jacobian, instead(jacobian_of_plain_without_slope)),
    Mutation(2, "slope of phi 1% off", forms.activation_slope, scaled(1.01)),
    Mutation(3, "10% off", forms.gated_input_second_order, scaled(1.1)),
    Mutation(3, "plain, 10% off", forms.plain_input_second_order, scaled(1.1)),
    Mutation(3, "phi'' doubled", forms.activation_curvature, scaled(2.0)),
    Mutation(4, "half", second_order.bilinear_remainder, scaled(0.5)),
    Mutation(4, "1e-6 off", second_order.bilinear_remainder, scaled(1 + 1e-6)),
    Mutation(5, "without the cross term", forms.gated_weight_second_order, instead(second_order_without_cross_term)),
    Mutation(5, "plain, 10% off", forms.plain_weight_second_order, scaled(1.1)),
    Mutation(6, "rows shifted", rows.scaled_rows, instead(lambda s, weight: weight.roll(1, 0) * s[:, None])),
    Mutation(6, "the printed form made right", rows.scaled_as_published, instead(rows.scaled_rows)),
    Mutation(6, "the MLP without its gate's phi", forms.gated_mlp,
             instead(lambda z, w, phi: ((z @ w.gate.T) * (z @ w.up.T)) @ w.down.T)),
    Mutation(6, "the plain MLP without its first bias", forms.plain_mlp,
             instead(lambda z, w, phi: phi(z @ w.first.T) @ w.second.T + w.second_bias)),
]  # fmt: skip


# --- column space, norm, skip, ReFT ---


def gate_half(right):
    def half(weights, update, z):
        matrix, wanted = right(weights, update, z)
        return matrix[: len(matrix) // 2], wanted[: len(wanted) // 2]

    return half


def up_half(right):
    def half(weights, update, z):
        matrix, wanted = right(weights, update, z)
        return matrix[len(matrix) // 2 :], wanted[len(wanted) // 2 :]

    return half


def without_projection(x, parts, eps):
    return torch.diag(parts.gain / (x.square().mean() + eps).sqrt())


def exchanged(right):
    return lambda weights, update, z: right(update, weights, z)


def update_with(sign: float):
    def update(r, down, bias):
        both = r.rotation.T @ (r.weight - r.rotation)
        return both @ down, r.rotation.T @ r.bias + sign * both @ bias

    return update


UNGATED = instead(jacobian_with_negative_ungated_path)
SPACES = [
    Mutation(7, "un-gated path of A with the wrong sign", forms.gated_input_jacobian, UNGATED),
    Mutation(7, "1% off", columns.distance_to_columns, scaled(1.01)),
    Mutation(7, "1% long", columns.best_shift, scaled(1.01)),
    Mutation(7, "of full rank", columns.reduced_rank, lambda right: lambda s, w, r: (w, right(s, w, r)[1])),
    Mutation(8, "un-gated path of A with the wrong sign", forms.gated_input_jacobian, UNGATED),
    Mutation(8, "plain without phi'", forms.plain_input_jacobian, instead(jacobian_of_plain_without_slope)),
    Mutation(8, "1% long", columns.best_shift, scaled(1.01)),
    Mutation(9, "un-gated path of A with the wrong sign", forms.gated_input_jacobian, UNGATED),
    Mutation(9, "nothing projected out", norm.norm_jacobian, instead(without_projection)),
    Mutation(10, "0.9 A D_N", norm.block_jacobian, lambda right: lambda a, n: right(0.9 * a, n)),
    Mutation(10, "without the skip", norm.block_jacobian, instead(lambda a, n: a @ n)),
    Mutation(10, "the skip alone", norm.block_jacobian, instead(lambda a, n: torch.eye(len(a), dtype=a.dtype))),
    Mutation(10, "no norm", norm.norm_jacobian, scaled(0.0)),
    Mutation(11, "condition without its W_u half", columns.stacked_condition, gate_half),
    Mutation(11, "condition without its W_g half", columns.stacked_condition, up_half),
    Mutation(11, "sides exchanged", columns.stacked_condition, exchanged),
    Mutation(11, "patch twice too far", columns.rank_one_patch,
             lambda right: lambda w, z, to: right(w, z, z + 2 * (to - z))),
    Mutation(11, "1% long", columns.best_shift, scaled(1.01)),
    Mutation(12, "0.1% long", oracles.oracle_shift, scaled(1.001)),
    Mutation(13, "0.1% off", skip.bias_of_down, scaled(1.001)),
    Mutation(13, "without the map's own bias", skip.bias_of_down, instead(lambda module, vector: vector.clone())),
    Mutation(16, "reads the stream", skip.read_at_mlp_out, instead(skip.read_at_resid_post)),
    Mutation(16, "reads y alone", skip.read_at_resid_post, instead(skip.read_at_mlp_out)),
    Mutation(17, "writes nothing", skip.adapter, instead(lambda parameters, read, phi: torch.zeros_like(read))),
    Mutation(17, "reads nothing", skip.adapter, instead(lambda p, read, phi: torch.zeros_like(read) + p["b"])),
    Mutation(14, "bias term of Db with the wrong sign", reft.effective_update, instead(update_with(-1))),
    Mutation(14, "bias term of Db left out", reft.effective_update, instead(update_with(0))),
    Mutation(14, "without - R^T R", reft.effective_update,
             instead(lambda r, down, b: (r.rotation.T @ r.weight @ down, r.rotation.T @ (r.bias + r.weight @ b)))),
    Mutation(14, "1% off", reft.reft_edit, scaled(1.01)),
    Mutation(15, "1% off", reft.reft_edit, scaled(1.01)),
    Mutation(15, "without b", reft.overwritten, instead(lambda x, r: x @ r.weight.T)),
    Mutation(15, "everything untouched", reft.untouched, instead(lambda x, r: x)),
]  # fmt: skip


# --- projection, second moments, oracles, error control ---


def by_lockstep(right):
    """Lockstep's rule in place of one step's: on the fine-tuned stream the same shift, after an error another one."""

    def edits(subject, layers, update):
        sites = [two_rules.post(layer) for layer in layers]
        return two_rules.lockstep_edits(two_rules.run_at(subject, sites, update=update), sites)

    return edits


def only_last(norms):
    return [(1.0, direction) for _, direction in norms[:-1]] + norms[-1:]


def half_but_last(norms):
    return [(size / 2, direction) for size, direction in norms[:-1]] + norms[-1:]


def no_power_method(of, start):
    direction = start / start.norm()
    return float(of.push(direction).norm()), direction


def sum_of_products(errors, constants):
    return sum(error * constant for error, constant in zip(errors, constants, strict=True))


def radius_ignored_for_up(right):
    """The bound with max|a_u| at the centre in place of the ball."""

    def bound(weights, activation, centre, radius, slope):
        if not isinstance(weights, forms.GatedWeights):
            return right(weights, activation, centre, radius, slope)
        size = torch.linalg.matrix_norm
        largest_up = (weights.up @ centre).abs().max()
        rows = weights.gate.norm(dim=1)
        largest_phi = (activation(weights.gate @ centre).abs() + slope * radius * rows).max()
        inner = slope * largest_up * size(weights.gate, 2) + largest_phi * size(weights.up, 2)
        return float(size(weights.down, 2) * inner)

    return bound


def fifth_of_down(right):
    def bound(weights, *rest):
        down = {"down": weights.down / 5} if isinstance(weights, forms.GatedWeights) else {"second": weights.second / 5}
        return right(weights._replace(**down), *rest)

    return bound


def truncated_coefficients(x, y, rank):
    left, values, right = torch.linalg.svd(torch.linalg.pinv(x) @ y, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def eye_like(matrix):
    return torch.eye(len(matrix), dtype=matrix.dtype)


DATA = [
    Mutation(18, "sides exchanged", projection.mlp_projector, lambda right: lambda s, m: right(m, s)),
    Mutation(18, "the other projector", projection.skip_projector, instead(projection.mlp_projector)),
    Mutation(19, "one arbitrary map 37 A^T", projection.minimax_map, instead(lambda edit, v, start: 37 * edit.T)),
    Mutation(19, "its start", projection.minimax_map, instead(lambda edit, v, start: start)),
    Mutation(19, "one of the two errors", projection.worst_error, instead(lambda b, edit, v: float((b @ v).norm()))),
    Mutation(19, "twice", projection.left_of_meeting, scaled(2.0)),
    Mutation(20, "S", moments.parallel_sum, instead(lambda s, y: s)),
    Mutation(20, "the identity", moments.best_projection, instead(lambda s, y: eye_like(s))),
    Mutation(20, "without the cross-covariance", moments.conditional_covariance,
             lambda right: lambda s, y, c: moments.parallel_sum(s, y)),
    Mutation(20, "without the cross-covariance", moments.skip_given_mlp, instead(lambda s, y, c: s)),
    Mutation(20, "exchanged", moments.relative_errors, each(lambda pair: pair[::-1])),
    Mutation(21, "backwards", oracles.oracle_shift, scaled(-1.0)),
    Mutation(22, "1% short", oracles.lockstep_shift, scaled(0.99)),
    Mutation(22, "1% of the base block too much", oracles.one_step_shift, instead(lambda t, b: t - 1.01 * b)),
    Mutation(22, "lockstep's own shift", two_rules.one_step_edits, by_lockstep),
    Mutation(22, "the lowest layer alone", two_rules.lockstep_edits,
             lambda right: lambda tuned, sites: right(tuned, sites[:1])),
    Mutation(23, "no power method at all", propagation.leading_singular, instead(no_power_method)),
    Mutation(23, "norm 1e-5 off", propagation.leading_singular, each(lambda f: (f[0] * (1 + 1e-5), f[1]))),
    Mutation(23, "1 for every block but the last", propagation.lipschitz_constants, each(only_last)),
    Mutation(23, "half for every block but the last", propagation.lipschitz_constants, each(half_but_last)),
    Mutation(23, "without its last block", propagation.composed, lambda right: lambda maps: right(maps[:-1])),
    Mutation(23, "in the wrong order", propagation.composed, lambda right: lambda maps: right(maps[::-1])),
    Mutation(23, "the sum of errors", propagation.propagated_bound, instead(lambda errors, constants: sum(errors))),
    Mutation(23, "one factor each", propagation.propagated_bound, instead(sum_of_products)),
    Mutation(23, "factors in reverse order", propagation.propagated_bound,
             lambda right: lambda errors, constants: right(errors, constants[::-1])),
    Mutation(24, "without sqrt(n)", lipschitz.norm_bound,
             instead(lambda x, y: (x - y).norm(dim=-1) / (x.norm(dim=-1) * y.norm(dim=-1)).sqrt())),
    Mutation(24, "one length for both", lipschitz.norm_bound,
             instead(lambda x, y: x.shape[-1] ** 0.5 * (x - y).norm(dim=-1) / y.norm(dim=-1))),
    Mutation(24, "epsilon 1", lipschitz.normalised,
             instead(lambda x, eps, centred: x / (x.square().mean(-1, keepdim=True) + 1).sqrt())),
    Mutation(24, "without |W - W'|", lipschitz.read_bound,
             lambda right: lambda x, y, w, change: right(x, y, w, 0 * change)),
    Mutation(24, "Frobenius norm of W - W'", lipschitz.read_bound,
             lambda right: lambda x, y, w, change: right(x, y, w, change) + 0.01 * change.norm()),
    Mutation(25, "1", lipschitz.ball_lipschitz, instead(lambda *args: 1.0)),
    Mutation(25, "ball radius ignored in max|a_u|", lipschitz.ball_lipschitz, radius_ignored_for_up),
    Mutation(25, "ball radius ignored", lipschitz.ball_lipschitz,
             lambda right: lambda w, phi, centre, radius, slope: right(w, phi, centre, 0.0, slope)),
    Mutation(25, "|W_d| divided by 5", lipschitz.ball_lipschitz, fifth_of_down),
    Mutation(25, "10% of the slope", lipschitz.steepest, each(lambda pair: (0.1 * pair[0], pair[1]))),
    Mutation(26, "rank one too high", linear_oracles.principal_error, lambda right: lambda x, k: right(x, k + 1)),
    Mutation(26, "not centred", linear_oracles.spectrum_tail,
             instead(lambda x, k: torch.linalg.svdvals(x)[k:].square().sum())),
    Mutation(26, "inside for outside", linear_oracles.outside_columns, each(lambda share: 1 - share)),
    Mutation(26, "of twice the rank", subspaces.rank_excess, lambda right: lambda x, rank: right(x, rank // 2)),
    Mutation(27, "a cube: odd", linear_oracles.curved_oracle,
             instead(lambda h, v, u: ((h @ v) ** 3 - 1).unsqueeze(-1) * u)),
    Mutation(27, "1 less", linear_oracles.affine_share, each(lambda share: 1 - share)),
    Mutation(28, "truncated coefficients", oracles.reduced_rank_map, instead(truncated_coefficients)),
]  # fmt: skip


# --- forms, gauge, joint, context, heads, tangents, outputs ---


def without_last_gate(u, d, b, a, m):
    return m @ a.T @ b.T @ (u @ d)


def sum_of_patches(weight, states):
    return weight + sum(map(context.read_patch, [weight] * 3, states, states[1:]))


def tangent_by_difference(adapted, a, b):
    return adapted(torch.tensor(a), torch.tensor(b)) - adapted(*torch.zeros(2))


def fixed_read(right):
    return lambda start, tasks, strengths: right(start, tasks, strengths) | {"D": start}


EDITS = [
    Mutation(29, "ReLU", steering.nonlinear_adapter,
             instead(lambda up, down, h: functional.relu(h @ down.T) @ up.T)),
    Mutation(29, "without the factor 2", steering.rescaled_nonlinear, scaled(0.5)),
    Mutation(30, "sigmoid", steering.nonlinear_adapter, instead(lambda up, down, h: (h @ down.T).sigmoid() @ up.T)),
    Mutation(30, "U not zero", steering.linear_adapter, lambda right: lambda up, down, h: right(up + 1, down, h)),
    Mutation(31, "1% off", steering.skip_read, scaled(1.01)),
    Mutation(31, "1% off", steering.written_update, each(lambda pair: tuple(1.01 * part for part in pair))),
    Mutation(32, "factors in the wrong order", gauge.next_gauge, instead(lambda g, up, down: g + (g @ up) @ down)),
    Mutation(32, "read map as it was", gauge.read_map, instead(lambda weight, g: weight)),
    Mutation(32, "G W", gauge.write_map, instead(lambda weight, g: g @ weight)),
    Mutation(32, "G^T", gauge.write_map, instead(lambda weight, g: torch.linalg.solve(g.T, weight))),
    Mutation(32, "1: the control holds", gauge.norm_size, lambda right: lambda x, eps, c: torch.ones_like(x[..., :1])),
    Mutation(33, "not projected", joint.input_projected, instead(lambda read, lora: read)),
    Mutation(33, "right but for B = 0", joint.input_projected, instead(joint.singular_vectors_projected)),
    Mutation(33, "not projected", joint.output_projected, instead(lambda write, lora: write)),
    Mutation(33, "(U D)^T", joint.interaction, instead(without_last_gate)),
    Mutation(33, "a wrong basis", subspaces.columns_of, each(lambda q: q.roll(1, 0))),
    Mutation(33, "the code's projection 1% off", joint.singular_vectors_projected, scaled(1.01)),
    Mutation(33, "reads the stream as well", joint.adapted,
             instead(lambda h, write, read: functional.silu(h @ read.T) @ write.T + h)),
    Mutation(34, "along a'", context.read_patch,
             instead(lambda w, a, b: torch.outer(w @ (b - a), b) / b.square().sum())),
    Mutation(34, "|a|", context.read_patch, instead(lambda w, a, b: torch.outer(w @ (b - a), a) / a.norm())),
    Mutation(34, "a sum for the product", context.sequential_patch, instead(sum_of_patches)),
    Mutation(35, "along a'", context.read_patch,
             instead(lambda w, a, b: torch.outer(w @ (b - a), b) / b.square().sum())),
    Mutation(35, "|m|", context.write_patch, instead(lambda shift, m: torch.outer(shift, m) / m.norm())),
    Mutation(35, "not divided by the norm's output", context.scale_patch, instead(lambda shift, f: shift)),
    Mutation(36, "backwards", context.context_shift, scaled(-1.0)),
    Mutation(36, "0.1% short", context.context_shift, scaled(0.999)),
    Mutation(37, "heads interleaved", heads.head_columns,
             instead(lambda w, head, count: w.unflatten(1, (-1, count))[:, :, head])),
    Mutation(37, "the next head's", heads.offset_as_vector, instead(lambda w, v: w @ v.roll(1, 0).flatten())),
    Mutation(37, "without 1 +", heads.scaled_columns, instead(lambda w, s: w * s.flatten())),
    Mutation(37, "an offset without a gate", heads.gated_edit, instead(lambda z, gm, m, ga, a: gm * m * z + a)),
    Mutation(38, "equal tokens alone", tangent.site_kernel, instead(tangent.token_kernel)),
    Mutation(38, "the kernel itself", tangent.token_kernel, instead(tangent.site_kernel)),
    Mutation(38, "tokens reversed", tangents.linear_tangent,
             instead(lambda grad, read: torch.einsum("bto,bti->boi", grad, read.flip(1)))),
    Mutation(38, "1% off", kernels.gram, scaled(1.01)),
    Mutation(39, "squared", coverage.residual_bound, instead(lambda cosine: 1 - cosine**2)),
    Mutation(39, "everything", coverage.left_over, instead(lambda target, jacobian: float(target.norm()))),
    Mutation(39, "the cosine", coverage.sine_to,
             instead(lambda t, jacobian: float((torch.linalg.qr(jacobian).Q.T @ t).norm() / t.norm()))),
    Mutation(39, "the cosines not squared", coverage.mean_left, instead(lambda c, n: 1 - float(c.sum()) / n)),
    Mutation(40, "1% of it left", identifiability.null_part,
             lambda right: lambda vector, j: 0.99 * right(vector, j) + 0.01 * vector),
    Mutation(40, "rows not orthonormal", identifiability.null_part, instead(lambda v, j: v - j.T @ (j @ v))),
    Mutation(40, "sizes that are not small", identifiability.first_order_radius, instead(lambda sizes, errors: 10.0)),
    Mutation(40, "no size", identifiability.first_order_radius, instead(lambda sizes, errors: 0.0)),
    Mutation(40, "not radial", identifiability.radial_shift, instead(lambda h, factor, constant: factor * h.abs())),
    Mutation(41, "the other direction", kl.divergence,
             instead(lambda p, q: (q.softmax(-1) * (q.log_softmax(-1) - p.log_softmax(-1))).sum(-1).mean())),
    Mutation(41, "the other direction's", kl.divergence_slope, instead(delta.reversed_slope)),
    Mutation(41, "the right direction's", delta.reversed_slope, instead(kl.divergence_slope)),
    Mutation(41, "to the base model", delta.delta_kl,
             instead(lambda steered, base, tuned: kl.divergence(steered, base))),
    Mutation(41, "backwards", oracles.oracle_shift, scaled(-1.0)),
    Mutation(42, "without the fourth term", arithmetic.mixed_term, instead(lambda both, a, b, none: both - a - b)),
    Mutation(42, "one task alone", arithmetic.mixed_term, instead(lambda both, a, b, none: both - a)),
    Mutation(42, "a difference for the derivative", arithmetic.tangent_shift, instead(tangent_by_difference)),
    Mutation(42, "D of the adapters never moves", arithmetic.combined, fixed_read),
    Mutation(42, "u_1 d_1 for u_1 d_2", arithmetic.mixed_at_lowest, lambda right: lambda a, b, h: right(a, a, h)),
    Mutation(42, "the mixed difference", arithmetic.disentanglement_error,
             instead(lambda both, alone: (both - alone).norm() ** 2)),
]  # fmt: skip

MUTATIONS = [*EXPANSIONS, *SPACES, *DATA, *EDITS]
