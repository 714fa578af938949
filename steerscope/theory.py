"""What the theory is made of, for following it by hand: the notebooks use these names, on blocks of any layout.

Propositions are tried by :func:`steerscope.verify`. The formulas and measurements here are what their checks and
docs/theory.md are made of; names may change with the theory, and CHANGELOG.md then says how. Loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerscope.lazy import door

if TYPE_CHECKING:
    from steerscope.analysis.data.encoding import encode
    from steerscope.analysis.theory.common import (
        of_layer,
        random_like,
        relative_size,
        rows_of_one_length,
        spread,
        streams,
    )
    from steerscope.analysis.theory.conditioning import conditioning
    from steerscope.analysis.theory.oracle_spectra import oracle_spectra
    from steerscope.analysis.theory.radius import first_order_radius
    from steerscope.analysis.theory.residual_map import residual_map
    from steerscope.analysis.theory.slopes import remainder_slopes
    from steerscope.analysis.theory.stream_shares import stream_shares
    from steerscope.equivalence.closed_forms import gated_mlp
    from steerscope.equivalence.divergence import divergence
    from steerscope.equivalence.edit_forms import edit_form
    from steerscope.equivalence.oracles import lockstep_shift, oracle_shift, reduced_rank_map
    from steerscope.equivalence.propositions.catalogue import propositions
    from steerscope.equivalence.propositions.mlp_expansion import (
        drawn_weight_update,
        weight_second_order,
        weight_shift,
        without_down,
    )
    from steerscope.equivalence.propositions.p14_15_reft import ReftParameters, effective_update
    from steerscope.equivalence.propositions.p26_27_28_linear_oracles import affine_share, curved_oracle
    from steerscope.equivalence.propositions.p29_30_31_steering_forms import (
        linear_adapter,
        nonlinear_adapter,
        rescaled_nonlinear,
    )
    from steerscope.equivalence.propositions.p33_joint import adapted as silu_adapter
    from steerscope.equivalence.propositions.p33_joint import (
        input_projected,
        output_projected,
        singular_vectors_projected,
    )
    from steerscope.equivalence.propositions.p34_35_36_context import context_shift, read_patch, write_patch
    from steerscope.equivalence.propositions.parts import (
        as_parameters,
        bias_of,
        mlp_alone,
        mlp_parts,
        output_first,
        parameter_name,
        relative_error,
        tensors_at,
    )
    from steerscope.equivalence.propositions.parts import moved as updated_weights
    from steerscope.equivalence.propositions.parts import run as run_block
    from steerscope.equivalence.propositions.runs import fine_tuning as low_rank_update
    from steerscope.equivalence.propositions.runs import post as block_output
    from steerscope.equivalence.propositions.runs import run_at as run_model
    from steerscope.equivalence.propositions.runs import unit as unit_norm
    from steerscope.equivalence.propositions.subject import random_subject
    from steerscope.equivalence.remainder import fit_remainder, remainder_slope
    from steerscope.equivalence.shifts import first_order_shift, measured_shift
    from steerscope.equivalence.subspaces import columns_of, rank_excess
    from steerscope.experiments.finetune import short_finetune
    from steerscope.experiments.verification.run import try_propositions
    from steerscope.models.attention import forward_differentiable_attention

_HOMES = {
    # Propositions, and what they are tried on
    "propositions": "equivalence.propositions.catalogue",
    "random_subject": "equivalence.propositions.subject",
    "try_propositions": "experiments.verification.run",
    "relative_error": "equivalence.propositions.parts",
    # First-order maps, and how far they reach
    "first_order_shift": "equivalence.shifts",
    "measured_shift": "equivalence.shifts",
    "fit_remainder": "equivalence.remainder",
    "remainder_slope": "equivalence.remainder",
    "remainder_slopes": "analysis.theory.slopes",
    "first_order_radius": "analysis.theory.radius",
    "forward_differentiable_attention": "models.attention",
    # One block by hand: its MLP's weights, their updates, runs with edits or other weights
    "mlp_parts": "equivalence.propositions.parts",
    "mlp_alone": "equivalence.propositions.parts",
    "output_first": "equivalence.propositions.parts",
    "bias_of": "equivalence.propositions.parts",
    "parameter_name": "equivalence.propositions.parts",
    "as_parameters": "equivalence.propositions.parts",
    "updated_weights": "equivalence.propositions.parts:moved",
    "run_block": "equivalence.propositions.parts:run",
    "tensors_at": "equivalence.propositions.parts",
    "run_model": "equivalence.propositions.runs:run_at",
    "block_output": "equivalence.propositions.runs:post",
    "low_rank_update": "equivalence.propositions.runs:fine_tuning",
    "unit_norm": "equivalence.propositions.runs:unit",
    "weight_shift": "equivalence.propositions.mlp_expansion",
    "weight_second_order": "equivalence.propositions.mlp_expansion",
    "drawn_weight_update": "equivalence.propositions.mlp_expansion",
    "without_down": "equivalence.propositions.mlp_expansion",
    "gated_mlp": "equivalence.closed_forms",
    # Oracles, edit forms, ReFT, context as a patch, joint adaptation
    "oracle_shift": "equivalence.oracles",
    "lockstep_shift": "equivalence.oracles",
    "reduced_rank_map": "equivalence.oracles",
    "affine_share": "equivalence.propositions.p26_27_28_linear_oracles",
    "curved_oracle": "equivalence.propositions.p26_27_28_linear_oracles",
    "divergence": "equivalence.divergence",
    "columns_of": "equivalence.subspaces",
    "rank_excess": "equivalence.subspaces",
    "edit_form": "equivalence.edit_forms",
    "linear_adapter": "equivalence.propositions.p29_30_31_steering_forms",
    "nonlinear_adapter": "equivalence.propositions.p29_30_31_steering_forms",
    "rescaled_nonlinear": "equivalence.propositions.p29_30_31_steering_forms",
    "ReftParameters": "equivalence.propositions.p14_15_reft",
    "effective_update": "equivalence.propositions.p14_15_reft",
    "context_shift": "equivalence.propositions.p34_35_36_context",
    "read_patch": "equivalence.propositions.p34_35_36_context",
    "write_patch": "equivalence.propositions.p34_35_36_context",
    "silu_adapter": "equivalence.propositions.p33_joint:adapted",
    "input_projected": "equivalence.propositions.p33_joint",
    "output_projected": "equivalence.propositions.p33_joint",
    "singular_vectors_projected": "equivalence.propositions.p33_joint",
    # Measurements on a model, along a short fine-tuning
    "short_finetune": "experiments.finetune",
    "encode": "analysis.data.encoding",
    "rows_of_one_length": "analysis.theory.common",
    "streams": "analysis.theory.common",
    "of_layer": "analysis.theory.common",
    "random_like": "analysis.theory.common",
    "relative_size": "analysis.theory.common",
    "spread": "analysis.theory.common",
    "conditioning": "analysis.theory.conditioning",
    "oracle_spectra": "analysis.theory.oracle_spectra",
    "residual_map": "analysis.theory.residual_map",
    "stream_shares": "analysis.theory.stream_shares",
}

__getattr__, __dir__ = door(__name__, _HOMES)

__all__ = [
    "ReftParameters",
    "affine_share",
    "as_parameters",
    "bias_of",
    "block_output",
    "columns_of",
    "conditioning",
    "context_shift",
    "curved_oracle",
    "divergence",
    "drawn_weight_update",
    "edit_form",
    "effective_update",
    "encode",
    "first_order_radius",
    "first_order_shift",
    "fit_remainder",
    "forward_differentiable_attention",
    "gated_mlp",
    "input_projected",
    "linear_adapter",
    "lockstep_shift",
    "low_rank_update",
    "measured_shift",
    "mlp_alone",
    "mlp_parts",
    "nonlinear_adapter",
    "of_layer",
    "oracle_shift",
    "oracle_spectra",
    "output_first",
    "output_projected",
    "parameter_name",
    "propositions",
    "random_like",
    "random_subject",
    "rank_excess",
    "read_patch",
    "reduced_rank_map",
    "relative_error",
    "relative_size",
    "remainder_slope",
    "remainder_slopes",
    "rescaled_nonlinear",
    "residual_map",
    "rows_of_one_length",
    "run_block",
    "run_model",
    "short_finetune",
    "silu_adapter",
    "singular_vectors_projected",
    "spread",
    "stream_shares",
    "streams",
    "tensors_at",
    "try_propositions",
    "unit_norm",
    "updated_weights",
    "weight_second_order",
    "weight_shift",
    "without_down",
    "write_patch",
]
