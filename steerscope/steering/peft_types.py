"""Which of PEFT's tuner types and options go under edits, as the round trip of the tests tried them.

What is not named here was not tried, and is refused before anything is trained: PEFT's files say nothing of weights
that its own initialisation changed, of encoders that it leaves out, or of files that a configuration only points to,
and an adapter saved with them could not be loaded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from steerscope.errors import InputError, shortened

PROMPT_TYPES = frozenset({"CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"})
_OTHERS = """
    ADALORA BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA LOKR LORA MISS
    OFT OSF PEANUT POLY PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA VERA
    WAVEFT
"""
SUPPORTED = PROMPT_TYPES | frozenset(_OTHERS.split())
REFUSED: Mapping[str, str] = {
    "ADAMSS": "it needs scikit-learn, and was not tried",
    "ADAPTION_PROMPT": "it puts modules of its own in place of attention, in which sites are not found",
    "P_TUNING": "PEFT saves what its encoder computes, and not the encoder that is trained",
    "SHADOW": "its blocks pass on an object of PEFT's in place of the residual stream",
    "XLORA": "it mixes other adapters, which its own files only point to",
}
# Types whose adapters PEFT cannot write into the weights, or (OSF) writes falsely.
UNMERGED = PROMPT_TYPES | {"BEFT", "LILY", "OSF", "POLY"}


@dataclass(frozen=True)
class RefusedOption:
    """A value of an option that does not go under edits.

    Attributes:
        types: Of which types; empty for all.
        name: Of the option.
        is_refused: Whether a value is.
        values: The refused values, in words.
        reason: Why.
    """

    types: frozenset[str]
    name: str
    is_refused: Callable[[Any], bool]
    values: str
    reason: str


_LORA = frozenset({"LORA", "ADALORA"})
# Initialisations of a LoRA that leave the model's own weights alone.
_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_CHANGES = "it changes the model's own weights, and no file says how they were"
_FILES = "its files only point to others"


def _is_given(value: Any) -> bool:
    return value is not None


OPTIONS: tuple[RefusedOption, ...] = (
    RefusedOption(
        frozenset({"LORA"}),
        "init_lora_weights",
        lambda value: value not in _INITS,
        "all but True, False, 'gaussian', 'eva', 'orthogonal' and 'mica' (so pissa, olora, corda, loftq, lora_ga)",
        f"{_CHANGES} (PEFT can convert such an adapter to a plain LoRA: path_initial_model_for_weight_conversion)",
    ),
    RefusedOption(_LORA, "kasa_config", _is_given, "any", _CHANGES),
    RefusedOption(_LORA, "layer_replication", _is_given, "any", "it makes blocks that the base model does not have"),
    RefusedOption(_LORA, "arrow_config", _is_given, "any", _FILES),
    RefusedOption(_LORA, "megatron_config", _is_given, "any", "its layers were not tried, and load a module by name"),
    RefusedOption(frozenset({"PVERA"}), "sample_at_inference", bool, "True", "no two passes then agree"),
    RefusedOption(
        frozenset({"TINYLORA"}), "init_weights", lambda value: value is False, "False", "PEFT leaves its numbers unset"
    ),
    RefusedOption(
        frozenset({"VBLORA"}), "save_only_topk_weights", bool, "True", "PEFT's file leaves out some of what is trained"
    ),
    RefusedOption(
        frozenset({"PREFIX_TUNING"}),
        "prefix_projection",
        bool,
        "True",
        "PEFT saves what the projection computes, and not the projection that is trained",
    ),
    RefusedOption(
        frozenset({"MULTITASK_PROMPT_TUNING"}),
        "prompt_tuning_init",
        lambda value: str(getattr(value, "value", value)) not in ("TEXT", "RANDOM"),
        "source tasks",
        _FILES,
    ),
    RefusedOption(
        PROMPT_TYPES,
        "modules_to_save",
        bool,
        "any",
        "PEFT passes by the copies with virtual tokens, or cannot switch them off",
    ),
    RefusedOption(
        frozenset({"SHIRA"}), "mask_type", lambda value: value != "random", "own masks", "no file holds the function"
    ),
)
# Every other option of the supported types was tried. Those of a later PEFT were not.
_NAMES = """
    ab_svd_init act_fn alora_invocation_tokens alpha alpha_pattern apply_GS arrow_config auto_mapping
    base_model_name_or_path beta1 beta2 bias block_share block_size block_size_pattern boft_block_num
    boft_block_size boft_dropout boft_n_butterfly_factor cayley_neumann_eps coft config_A_B config_C config_D_E
    corda_config cpt_mask cpt_token_ids cpt_tokens_type_mask d_initial decompose_both decompose_factor
    decomposition_method deft_dropout delora_lambda deltaT depth effective_rank encoder_hidden_size
    ensure_weight_tying eps eva_config exclude_modules fan_in_fan_out feedforward_modules frod_dropout
    generator_seed gralora_dropout gralora_k group_size hira_dropout hybrid_r inference_mode init_ia3_weights
    init_logits_std init_lora_weights init_r init_scale init_theta_d_bound init_v_bound init_vector_bank_bound
    init_weights kasa_config lambda_pattern layer_replication layers_pattern layers_to_transform loftq_config
    lora_alpha lora_bias lora_dropout lora_ga_config mask_type megatron_config megatron_core mini_r miss_dropout
    module_dropout modules_to_save monteclora_config n_frequency n_frequency_pattern n_skills n_splits n_tasks
    num_B num_attention_heads num_cayley_neumann_terms num_frozen_tokens num_layers num_ranks num_tasks
    num_transformer_submodules num_vectors num_virtual_tokens oft_block_size opt_loss_decay_factor
    opt_projection_epsilon opt_projection_format_epsilon opt_weighted_loss_type orth_reg_weight para peft_type
    peft_version poly_type prefix_projection progressbar proj_seed projection_prng_key projection_seed
    prompt_tuning_init prompt_tuning_init_state_dict_path prompt_tuning_init_task prompt_tuning_init_text
    proportional_parameters psoft_alpha psoft_dropout psoft_mag_a psoft_mag_b psoft_orth psoft_svd
    psoft_svd_lowrank_niter pvera_dropout qalora_group_size r randlora_alpha randlora_dropout random_loc_seed
    random_seed rank_dropout rank_dropout_scale rank_pattern regularization_alpha revision runtime_config
    runtime_offload_base_weight sample_at_inference save_indices save_only_topk_weights save_precomputed_indices
    save_projection scaling select_top sparse sparse_rate sparsity stride_A target_modules target_parameters
    target_r target_svd_config task_type tfinal theta_d_length tinit tinylora_dropout token_dim token_indices
    tokenizer_kwargs tokenizer_name_or_path topk total_step trainable_token_indices u unilora_dropout use_bdlora
    use_cayley_neumann use_dora use_effective_conv2d use_idwt use_qalora use_rslora variant vblora_dropout
    vector_length velora_config vera_dropout very_sparse wavelet_family weight_tying
"""
_KNOWN = frozenset(_NAMES.split())


def type_name(config: Any) -> str:
    """Return a PEFT configuration's type as PEFT writes it, ``LORA`` for example."""
    found = config.get("peft_type") if isinstance(config, Mapping) else getattr(config, "peft_type", None)
    return str(getattr(found, "value", found))


def require_supported(config: Any) -> None:
    """Refuse a PEFT configuration that does not go under edits.

    Args:
        config: A PEFT configuration, or what its file says.

    Raises:
        InputError: Its type or an option of it was found not to come back from its files, or was never tried.
    """
    name = type_name(config)
    if name not in SUPPORTED:
        reason = REFUSED.get(name, "it was not tried")
        raise InputError(
            f"PEFT's {name} does not go under edits: {reason}. Take another type (LORA, for example; docs/steering.md "
            "lists them), or put the edits on the plain model."
        )
    values = config if isinstance(config, Mapping) else {f.name: getattr(config, f.name, None) for f in fields(config)}
    for option in OPTIONS:
        if option.name in values and (not option.types or name in option.types):
            value = values[option.name]
            if option.is_refused(value):
                raise InputError(
                    f"PEFT's {name} with {option.name}={shortened(repr(value))} does not go under edits: "
                    f"{option.reason}. Leave the option as PEFT has it, or put the edits on the plain model."
                )
    if isinstance(config, Mapping):
        return
    for one in fields(config):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if one.name not in _KNOWN and values[one.name] != default:
            raise InputError(
                f"PEFT's {name} with {one.name}={shortened(repr(values[one.name]))} was not tried under edits. "
                "Leave the option as PEFT has it, or put the edits on the plain model."
            )
