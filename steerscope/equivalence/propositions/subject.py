"""What propositions are tried on: a causal language model in float64 and tokens to run it on.

Random blocks, a tiny random model of any layout and a real model are all the same kind of subject, so that one
check serves all three. Everything inside :meth:`Subject.ready` computes in true float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from steerscope.equivalence.propositions.texts import Texts
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.blocks import Block
from steerscope.models.precision import true_float64
from steerscope.models.site_map import SiteMap, find_sites


@dataclass(frozen=True)
class Subject:
    """A model to try propositions on.

    Attributes:
        name: For the table.
        model: Causal language model, float64, evaluation mode, weights frozen.
        site_map: Its sites.
        input_ids: ``batch token``: tokens to run it on; no padding.
        layer: The block that statements about one block are tried on.
        seed: Seed of every random draw of a check.
        more_ids: ``batch token``: many tokens of the same kind, for second moments; by default ``input_ids``.
        texts: Data sets for statements about one edit for all tokens; random tokens where there is none.
    """

    name: str
    model: nn.Module
    site_map: SiteMap
    input_ids: Tensor
    layer: int
    seed: int = 0
    more_ids: Tensor | None = None
    texts: tuple[Texts, ...] = ()

    @property
    def many(self) -> Subject:
        """The same subject on its many tokens."""
        return self if self.more_ids is None else replace(self, input_ids=self.more_ids)

    @property
    def block(self) -> Block:
        """The block under study."""
        return self.site_map.blocks[self.layer]

    def generator(self, salt: int = 0) -> torch.Generator:
        """Return a fresh generator: the same draws at every call, other ones for another ``salt``."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + salt)

    def draw(self, *shape: int, salt: int = 0) -> Tensor:
        """Return seeded standard normal numbers in float64.

        Args:
            shape: Of the result.
            salt: Another one gives other numbers.

        Returns:
            A tensor in float64; the same at every call.
        """
        return torch.randn(*shape, generator=self.generator(salt), dtype=torch.float64)

    @contextmanager
    def ready(self) -> Iterator[Subject]:
        """Run checks inside: true float64, attention with forward derivatives, no gradient unless asked for."""
        with true_float64(self.model), forward_differentiable_attention(self.model), torch.no_grad():
            yield self


# Families whose blocks differ where formulas do: a gated MLP, a plain one with biases, norms behind both branches.
FAMILIES = ("llama", "gpt2", "gemma2")


def random_subjects(seed: int = 0) -> tuple[Subject, ...]:
    """Return random blocks of every layout that formulas tell apart: what statements are tried on without a model.

    Args:
        seed: Seed of weights, tokens and of every check.

    Returns:
        A gated MLP without biases (llama), a plain MLP with biases and LayerNorm (gpt2), and a gated one with norms
        behind attention and MLP (gemma2).
    """
    settings = {"gpt2": {"bos_token_id": 0, "eos_token_id": 1}, "gemma2": {"head_dim": 6}}
    return tuple(
        replace(random_subject(seed, model_type=family, **settings.get(family, {})), name=family) for family in FAMILIES
    )


def random_subject(seed: int = 0, *, model_type: str = "llama", layers: int = 3, **settings: int) -> Subject:
    """Return a small random Llama (or another family): d_model 24, d_ff 40, weights of order one over root width.

    Args:
        seed: Seed of weights, tokens and of every check.
        model_type: A family of transformers.
        layers: Number of blocks.
        settings: Further entries of the configuration.

    Returns:
        The subject, at its middle block.
    """
    options = {
        "vocab_size": 48,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        **settings,
    }
    config = AutoConfig.for_model(model_type, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                # transformers' 0.02 would make every branch vanish beside the stream: nothing would be tested.
                parameter.copy_(noise if "embed" in name else noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.2 * noise)
    return subject_of(model.double(), name=f"random {model_type} blocks", seed=seed)


def subject_of(
    model: nn.Module,
    *,
    name: str,
    seed: int = 0,
    layer: int | None = None,
    input_ids: Tensor | None = None,
    more_ids: Tensor | None = None,
) -> Subject:
    """Make a subject of a float64 model; by default its middle block, and two sequences of seven random tokens.

    Args:
        model: A causal language model in float64; put in evaluation mode, its parameters frozen.
        name: For the table.
        seed: Seed of the tokens and of every draw of a check.
        layer: The block under study; by default the middle one.
        input_ids: ``(batch, token)``; by default two sequences of seven random tokens.
        more_ids: ``(batch, token)``: many tokens, for second moments; by default ``input_ids``, or 60 sequences of
            seven random tokens.

    Returns:
        The subject with the model's sites.

    Raises:
        UnsupportedModelError: Its blocks have parts that the propositions do not speak of.
    """
    model.eval().requires_grad_(False)
    site_map = find_sites(model)
    site_map.require_plain_blocks("a proposition")
    if input_ids is None:
        size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        input_ids = torch.randint(3, size, (2, 7), generator=torch.Generator().manual_seed(seed))
        if more_ids is None:
            more_ids = torch.randint(3, size, (60, 7), generator=torch.Generator().manual_seed(seed + 1))
    layer = len(site_map.blocks) // 2 if layer is None else layer
    return Subject(name, model, site_map, input_ids, layer, seed, more_ids)
