"""PEFT's tuner types and options as they go onto a tiny model; types and options are asked from PEFT itself."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import config as lora
from torch import nn

from tests.steering.cases import padded, prompts
from tests.tiny import tiny_model

BATCH = padded(prompts(), "left")
TARGETS = ["q_proj", "o_proj", "down_proj"]
# Tokens of the batch: a row of the embeddings that nobody reads is not trained.
TOKENS = sorted({int(token) for token in BATCH["input_ids"][0]})
TYPES = {str(one.value): made for one, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
# What a type needs besides a rank and target modules, and sizes that divide 16 and 20.
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1, "target_modules": None},
    "BOFT": {"target_modules": ["q_proj", "o_proj"], "boft_block_size": 4},
    "C3A": {"target_modules": ["q_proj", "o_proj"], "block_size": 4},
    "CPT": {"cpt_token_ids": [3, 4, 5], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {"progressbar": False},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "OFT": {"r": 0, "oft_block_size": 4},
    "POLY": {"n_tasks": 2},
    "PVERA": {"target_modules": ["q_proj", "o_proj"]},
    "ROAD": {"group_size": 4},
    "TRAINABLE_TOKENS": {"token_indices": TOKENS, "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 4},
    "VERA": {"target_modules": ["q_proj", "o_proj"]},
    "WAVEFT": {"n_frequency": 20},
    "XLORA": {"hidden_size": 16, "adapters": {}},
}
# With its own start, two equal vectors per pair, HRA's Gram-Schmidt divides zero by zero.
WITH: dict[tuple[str, str], dict[str, Any]] = {("HRA", "apply_GS"): {"init_weights": False}}
ARGUMENTS: dict[str, dict[str, torch.Tensor]] = {
    "POLY": {"task_ids": torch.tensor([0, 1, 0])},
    "MULTITASK_PROMPT_TUNING": {"task_ids": torch.tensor([0, 0, 0])},
}


@dataclass(frozen=True)
class Case:
    """One PEFT configuration and the model that it goes on."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    family: str = "llama"
    changes: dict[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        model = tiny_model(self.family, **self.changes)
        model.config.use_cache = False  # X-LoRA insists
        return model

    def config(self) -> peft.PeftConfig:
        return TYPES[self.kind](**settings_of(self.kind) | self.options)

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return BATCH | ARGUMENTS.get(self.kind, {})


def settings_of(kind: str) -> dict[str, Any]:
    """What a type is made with, also one that nobody here knows."""
    names = {one.name for one in dataclasses.fields(TYPES[kind])}
    found: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if "num_virtual_tokens" in names and kind != "CPT":
        found["num_virtual_tokens"] = 3
    elif "target_modules" in names:
        found["target_modules"] = TARGETS
    if "r" in names:
        found["r"] = 4
    return found | SETTINGS.get(kind, {})


def _choices(annotation: Any) -> list[Any]:
    if annotation is bool:
        return [True, False]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [value for inner in typing.get_args(annotation) for value in _choices(inner)]


def options_of(kind: str) -> Iterator[Case]:
    """Every option of a type that has named values, at every value that is not its own, and what all types share."""
    made = TYPES[kind]
    hints = typing.get_type_hints(made)
    names = {one.name for one in dataclasses.fields(made)}
    biased = {"attention_bias": True, "mlp_bias": True}
    inherited = {one.name for one in dataclasses.fields(peft.LoraConfig)} if kind == "ADALORA" else set()
    for one in dataclasses.fields(made):
        if one.name in inherited - {"bias"}:
            continue  # tried with LORA; AdaLoRA refuses or ignores most of them
        if one.name in ("task_type", "peft_type", "fan_in_fan_out", "progressbar", "inference_mode"):
            continue
        values = _choices(hints[one.name])
        if one.name == "bias":
            values = sorted({*map(str, values), "all", f"{kind.lower()}_only"} - {"none"})
        for value in values:
            if value != one.default and "[" not in str(value):  # "pissa_niter_[number of iters]" is a pattern
                yield Case(
                    f"{kind}-{one.name}={value}",
                    kind,
                    {one.name: value} | WITH.get((kind, one.name), {}),
                    changes=biased if one.name == "bias" else {},
                )
    if "modules_to_save" in names:
        yield Case(f"{kind}-modules_to_save", kind, {"modules_to_save": ["lm_head"]})


def _sub(name: str, **options: Any) -> Any:
    """A sub-configuration of LoRA, where the installed PEFT has it."""
    made = getattr(lora, name, None)
    return None if made is None else made(**options)


def special() -> Iterator[Case]:
    """Options whose values have no names, and what depends on the model."""
    for tied in (False, True):
        changes, mark = {"tie_word_embeddings": tied}, "tied" if tied else "untied"
        for name, options in {
            "plain": {},
            "tokens": {"trainable_token_indices": TOKENS},
            "tokens-of-both": {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS}},
            "tokens-kept-tied": {"trainable_token_indices": TOKENS, "ensure_weight_tying": True},
            "copies-kept-tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
            "copies-of-both": {"modules_to_save": ["embed_tokens", "lm_head"]},
            "on-embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
            "on-head": {"target_modules": ["lm_head", "q_proj"]},
        }.items():
            if all(key in {f.name for f in dataclasses.fields(peft.LoraConfig)} for key in options):
                yield Case(f"{mark}-{name}", "LORA", options, changes=changes)
        yield Case(f"{mark}-only-tokens", "TRAINABLE_TOKENS", changes=changes)
    for name, options in {
        "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        "one-layer": {"layers_to_transform": [1]},
        "all-linear": {"target_modules": "all-linear"},
        "regex": {"target_modules": r".*\.1\..*proj"},
        "dropout": {"lora_dropout": 0.3},
        "norms": {"modules_to_save": ["norm", "input_layernorm"]},
        "whole-mlp": {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
        "own-map": {"modules_to_save": ["down_proj"], "target_modules": ["q_proj"]},
        "parameters": {"target_modules": [], "target_parameters": ["mlp.down_proj.weight", "q_proj.weight"]},
        "alora": {"alora_invocation_tokens": [int(token) for token in BATCH["input_ids"][0, -2:]]},
        "velora": {"velora_config": _sub("VeloraConfig", num_groups=2)},
        "monteclora": {"monteclora_config": _sub("MontecloraConfig")},
        "replication": {"layer_replication": [[0, 2], [1, 2]]},
        "kasa": {"kasa_config": _sub("KasaConfig")},
        "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
        "megatron": {"megatron_config": {"some": 1}},
        "block-diagonal": {
            "use_bdlora": _sub(
                "BdLoraConfig", target_modules_bd_a=TARGETS[1:], target_modules_bd_b=["q_proj"], nblocks=2
            )
        },
    }.items():
        if all(key in {f.name for f in dataclasses.fields(peft.LoraConfig)} for key in options):
            yield Case(name, "LORA", options)
    columns: dict[str, Any] = {"target_modules": ["attn.c_proj", "mlp.c_proj"], "fan_in_fan_out": True}
    for name, kind, more in [
        ("lora", "LORA", {}),
        ("dora", "LORA", {"use_dora": True}),
        ("bias", "LORA", {"bias": "all"}),
        ("tokens", "LORA", {"trainable_token_indices": {"wte": TOKENS}}),
        ("copies", "LORA", {"modules_to_save": ["wte", "ln_f"]}),
        ("adalora", "ADALORA", {}),
        ("ia3", "IA3", {"feedforward_modules": ["mlp.c_proj"]}),
        ("vera", "VERA", {"target_modules": ["attn.c_proj"]}),
        ("randlora", "RANDLORA", {}),
        ("fourier", "FOURIERFT", {}),
    ]:
        yield Case(f"gpt2-{name}", kind, columns | more, family="gpt2")
    yield Case("gpt2-norms", "LN_TUNING", {"target_modules": ["ln_1", "ln_f"]}, family="gpt2")
    yield Case("gpt2-prefix", "PREFIX_TUNING", family="gpt2")
    yield Case("gpt2-prompt", "PROMPT_TUNING", family="gpt2")
