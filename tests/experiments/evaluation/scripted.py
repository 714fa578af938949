"""A model that answers from a script: what an evaluation makes of known texts, with a real tokenizer between."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from steerscope.experiments.evaluation.evaluate import evaluate
from tests.byte_models import VOCAB, byte_tokenizer


class Scripted(torch.nn.Module):
    """Writes ``script[prompt]`` and the end token; its logits favour the same bytes wherever it is asked."""

    def __init__(self, script: Mapping[str, str], *, ends: bool = True):
        super().__init__()
        self.script, self.ends = script, ends
        self.tokenizer = byte_tokenizer()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[tuple[int, int]] = []

    def generate(self, input_ids, attention_mask, generation_config, **_):
        self.batches.append(tuple(input_ids.shape))
        rows = []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            prompt = self.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
            new = self.tokenizer(self.script[prompt])["input_ids"]
            # Behind the end a row of a batch is padded, or, as here, filled with anything.
            rows.append(ids + (new + [1, 70, 71] if self.ends else new)[: generation_config.max_new_tokens])
        width = max(map(len, rows))
        return torch.tensor([row + [2] * (width - len(row)) for row in rows])

    def forward(self, input_ids, **_):
        # Every byte is followed by the one that is next in the alphabet, so "ab" is more likely than "aa".
        logits = torch.nn.functional.one_hot((input_ids + 1) % VOCAB, VOCAB).float() + self.weight
        return type("Out", (), {"logits": logits})()


def evaluated(form, examples, texts, **options):
    """Evaluate texts as if a model had generated them."""
    script = {one.prompt: text for one, text in zip(examples, texts, strict=True)}
    model = Scripted(script)
    # A limit in bytes, not in the larger tokens that the task's own limit is made for.
    options = {"likelihoods": False, "max_new_tokens": 400} | options
    return evaluate(model, model.tokenizer, form, examples, **options)
