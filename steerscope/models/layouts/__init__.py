"""Which families steerscope knows: one small file per block layout, and the table that joins them."""

from __future__ import annotations

from transformers import PretrainedConfig

from steerscope.errors import UnsupportedModelError
from steerscope.models.description import BlockDescription
from steerscope.models.layouts import gemma_olmo2, gpt2_opt, gpt_neox_phi, llama_qwen_phi3

FAMILIES: dict[str, BlockDescription] = {
    **llama_qwen_phi3.FAMILIES,
    **gemma_olmo2.FAMILIES,
    **gpt2_opt.FAMILIES,
    **gpt_neox_phi.FAMILIES,
}


def known_description(config: PretrainedConfig) -> BlockDescription | None:
    """Return the block description of a configuration's family, ``None`` where it is to be recognised by its blocks.

    Raises:
        UnsupportedModelError: This member of a known family has another layout (GPT-2 with cross-attention).
    """
    family = config.model_type
    if family == "gpt_neox" and not config.use_parallel_residual:
        return gpt_neox_phi.NEOX_SEQUENTIAL
    if family == "opt" and not config.do_layer_norm_before:
        return None  # OPT-350m normalises the stream itself
    if family == "gpt2" and config.add_cross_attention:
        raise UnsupportedModelError("GPT-2 with cross-attention is not supported; use a decoder-only model.")
    return FAMILIES.get(family)
