"""Train a small model of another layout from scratch: a second model for validations where none can be downloaded.

    python -m steerscope.experiments.tiny_models gpt_neox FOLDER

It learns to evaluate flat ListOps expressions (one list, no nesting), in a few minutes on two cores; nested
expressions are then something that adaptation can teach it. The folder is an ordinary transformers model:
``steerscope rank FOLDER`` and ``steerscope validate FOLDER`` take it like any other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from steerscope.errors import InputError
from steerscope.experiments.tasks import GeneratedListOps, ListOps
from steerscope.files import exit_code_of, written_aside
from steerscope.folders import Kind, require_folder_for
from steerscope.models.tokens import text_tokens

_WORDS = ["<bos>", "<eos>", "<pad>", "<unk>", "[", "]", "=", "MIN", "MAX", "MED", "SM", *"0123456789"]
WIDTH, LAYERS = 96, 8
_COMMON: dict[str, Any] = {
    "vocab_size": len(_WORDS),
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_GATED = _COMMON | {
    "hidden_size": WIDTH,
    "intermediate_size": 3 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": {**_GATED, "intermediate_size": 4 * WIDTH},
    "gemma2": {**_GATED, "head_dim": WIDTH // 4, "query_pre_attn_scalar": WIDTH // 4},
    "gpt2": _COMMON | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 128},
    "llama": _GATED,
}


def listops_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per bracket, operator and digit."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[|\]|=|[A-Z]+|\d"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def train_tiny(family: str, folder: Path, *, steps: int = 2000, batch_size: int = 64, seed: int = 0) -> float:
    """Train a tiny model of ``family`` on flat ListOps and save it; return its accuracy on held-out expressions.

    Raises:
        InputError: The family is none of :data:`CONFIGS`, or the folder holds something else than a model.

    Cost: about five minutes on two cores with the defaults.
    """
    if family not in CONFIGS:
        raise InputError(f"there is no tiny configuration of {family!r}; expected one of {', '.join(CONFIGS)}.")
    require_folder_for(folder, Kind.MODEL)
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **CONFIGS[family]))
    tokenizer = listops_tokenizer()
    # Longer lists than those of the task, so that enough flat ones are different.
    flat = GeneratedListOps(generator=ListOps(max_depth=1, max_args=6))
    examples = flat.split("train", min(steps * batch_size, 30_000), seed)
    texts = [text_tokens(e.prompt + e.completion, tokenizer) for e in examples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(texts), (batch_size,), generator=generator).tolist()
        ids, mask = _padded([texts[i] for i in chosen])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        # The whole text is learned, and the answer (the last token) counts for as much as all the rest.
        targets = torch.where(mask.bool(), ids, -100)[:, 1:]
        last = mask.sum(1) - 1
        answer = cross_entropy(logits[torch.arange(batch_size), last - 1], ids[torch.arange(batch_size), last])
        loss = answer + cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(
                f"step {step} of {steps}: loss of the answer {float(answer.detach()):.3f}", file=sys.stderr, flush=True
            )
    model.eval()
    held = flat.split("test", 500, seed)
    ids, mask = _padded([text_tokens(e.prompt + e.completion, tokenizer) for e in held])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    rows, last = torch.arange(len(held)), mask.sum(1) - 1
    right = logits[rows, last - 1].argmax(-1) == ids[rows, last]
    with written_aside(folder, "the model", last=("config.json",)) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return float(right.double().mean())


def _padded(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts))
    ids = torch.tensor([text + [2] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask


def main() -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(CONFIGS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def work() -> None:
        accuracy = train_tiny(options.family, options.folder, steps=options.steps, seed=options.seed)
        print(f"accuracy on 500 held-out flat expressions: {100 * accuracy:.1f}%")

    return exit_code_of("tiny_models", work)


if __name__ == "__main__":
    raise SystemExit(main())
