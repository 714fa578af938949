"""Which families steerscope knows: one small file per block layout, and the table that joins them."""

from __future__ import annotations

from transformers import PretrainedConfig

from steerscope.errors import UnsupportedModelError, did_you_mean
from steerscope.models.blocks import BlockDescription
from steerscope.models.layouts import parallel, plain, sandwich, sequential

FAMILIES: dict[str, BlockDescription] = {
    **sequential.FAMILIES,
    **sandwich.FAMILIES,
    **plain.FAMILIES,
    **parallel.FAMILIES,
}


def description_for(config: PretrainedConfig) -> BlockDescription:
    """Return the block description of a configuration's family.

    Raises:
        UnsupportedModelError: The family is unknown, or this member of it has another layout (OPT-350m
            normalises after attention); the message says what is supported and how to describe a block.
    """
    family = config.model_type
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"model family {family!r} is not supported.{did_you_mean(family, list(FAMILIES))} Supported: "
            f"{', '.join(sorted(FAMILIES))}. For a block of one of these shapes under another name, use "
            "load_model(..., description=steerscope.BlockDescription(...)) in Python with the attribute paths of its "
            "parts; the self-check on load says whether it is true. Mixtures of experts are not supported yet."
        )
    if family == "gpt_neox" and not config.use_parallel_residual:
        return parallel.NEOX_SEQUENTIAL
    if family == "opt" and not config.do_layer_norm_before:
        raise UnsupportedModelError(
            "this OPT model normalises after attention and MLP (do_layer_norm_before=False, OPT-350m); "
            "only the pre-norm OPT models are supported. Use another OPT size."
        )
    if family == "gpt2" and config.add_cross_attention:
        raise UnsupportedModelError("GPT-2 with cross-attention is not supported; use a decoder-only model.")
    return FAMILIES[family]
