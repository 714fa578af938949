"""Refuse blocks of an unknown family from a model's configuration alone, before gigabytes of weights are read.

The model is built and run on the meta device: tensors have shapes and no numbers. What that tells is who hands on which
tensor, so a model without a list of blocks that hand on one stream, with other positions than tokens in it, or with
blocks of one branch or whose last word is a norm is refused. All that takes numbers is judged with the weights.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from steerscope.models.bundled import quiet_transformers
from steerscope.models.recognition.equation import BlockReader
from steerscope.models.recognition.recognise import blocks_of
from steerscope.models.recognition.trace import traced
from steerscope.models.wrappers import decoder_of


@torch.no_grad()
def refuse_from_configuration(config: PretrainedConfig, **options: Any) -> None:
    """Refuse a model by what a run without numbers tells of it; one that cannot run so is let through.

    Args:
        config: The model's configuration.
        options: As for ``AutoModelForCausalLM.from_config``.

    Raises:
        UnsupportedModelError: No list of blocks hands on one residual stream, the stream is normalised after
            additions, or a block has one branch.

    Cost: building the model without memory for its weights, and one pass without arithmetic: about a second.
    """
    ids, mask = torch.zeros(2, 6, dtype=torch.long, device="meta"), torch.ones(2, 6, dtype=torch.long, device="meta")
    try:
        with torch.device("meta"), quiet_transformers():
            # The mask of eager attention is made without looking into it.
            model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation="eager", **options).eval()
            decoder = decoder_of(model)
            with traced(decoder) as trace:
                model(input_ids=ids, attention_mask=mask, use_cache=False)
    except Exception:  # whatever a model raises that asks for numbers (which experts are chosen, for example)
        return
    _, blocks = blocks_of(decoder, trace, ids)
    for index, module in enumerate(blocks):
        BlockReader(module, index, trace, ids.shape).require_two_branches()
