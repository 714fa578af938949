"""A tokenizer whose tokens are bytes, so that any text survives it, and tiny models that speak it."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_model

SPECIALS = ("<bos>", "<eos>", "<pad>")
VOCAB = 256 + len(SPECIALS)


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    words = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(specials | options))


def byte_model(family: str = "llama", *, seed: int = 0, **options):
    positions = "n_positions" if family == "gpt2" else "max_position_embeddings"
    return tiny_model(family, seed=seed, **({"vocab_size": VOCAB, positions: 1024} | options))
