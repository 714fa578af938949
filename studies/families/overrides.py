"""What tiny configurations of single families need beside small sizes."""

from __future__ import annotations

from typing import Any

_BERT = {"is_decoder": True}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"head_dim": 8, "num_local_experts": 4, "n_group": 1, "topk_group": 1},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "bert": _BERT,
    "bert-generation": _BERT,
    "big_bird": _BERT,
    "camembert": _BERT,
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "data2vec-text": _BERT,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"ffn_hidden_size": 40}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "topk_group": 1, "n_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "electra": _BERT,
    "ernie": _BERT,
    "falcon_h1": _MAMBA2,
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "git": _BERT,
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    # Multipliers that are not 1, as released models have them.
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    "granitemoe": {"residual_multiplier": 0.22},
    "granitemoehybrid": {
        **_MAMBA2,
        "residual_multiplier": 0.22,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
    },
    "granitemoeshared": {"residual_multiplier": 0.22, "shared_intermediate_size": 40},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "megatron-bert": _BERT,
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "layers_block_type": ["mamba", "attention"],
    },
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {**_BERT, "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "local"]},
    "rembert": _BERT,
    "roberta": _BERT,
    "roberta-prelayernorm": _BERT,
    "roc_bert": _BERT,
    "roformer": _BERT,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _BERT,
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "num_hidden_layers": 2, "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "mamba_d_state": 8},
    "zaya": {"num_experts_per_tok": 1},
}

# Families whose smallest model takes minutes.
NOT_SMALL = {"blt": "it reads bytes in patches that a second model finds, whose size is fixed"}
