"""What rankings and sweeps of a model of some shape take, by counting: operations and memory, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerscope.analysis.capture.features import SketchPlan


@dataclass(frozen=True)
class Shape:
    """The shape of a gated transformer, dense or with experts.

    Attributes:
        name: What it is called.
        layers: Number of blocks.
        d_model: Width of the residual stream.
        d_ff: Width of the hidden layer of the MLP, or of one expert.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        vocab: Number of tokens.
        tied: Whether the unembedding is the embedding.
        experts: Experts per block; 1 for a dense MLP.
        active: Experts that a token goes through.
    """

    name: str
    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    experts: int = 1
    active: int = 1

    @property
    def attention(self) -> int:
        """Weights of the linear maps of one block's attention."""
        return 2 * self.d_model * self.head_dim * (self.heads + self.kv_heads)

    @property
    def expert(self) -> int:
        """Weights of one expert, or of the MLP."""
        return 3 * self.d_model * self.d_ff

    @property
    def per_block(self) -> int:
        """Weights of one block that a token goes through."""
        router = self.d_model * self.experts if self.experts > 1 else 0
        return self.attention + self.active * self.expert + router

    @property
    def parameters(self) -> int:
        """Weights of the whole model, without norms and biases."""
        router = self.d_model * self.experts if self.experts > 1 else 0
        blocks = self.layers * (self.attention + self.experts * self.expert + router)
        return blocks + (1 if self.tied else 2) * self.vocab * self.d_model

    @property
    def kinds(self) -> int:
        """Kinds of sites in a block that a sweep trains at; of experts the hidden layer is none."""
        return 7 if self.experts == 1 else 6

    @property
    def sites(self) -> int:
        """Sites that a ranking has: those of all blocks, and the stream that enters the first."""
        return self.kinds * self.layers + 1

    @property
    def write_points(self) -> int:
        """Places of the stream where edits add."""
        return 5 * self.layers + 1

    def operations_per_token(self) -> list[float]:
        """Return the operations per token of a training step by the first block that an edit makes run.

        As :func:`~steerscope.experiments.sweeping.cost.operations_per_token` counts them of a loaded model.

        Returns:
            One number per block, largest for the first, and 0 behind the last.
        """
        return [4.0 * self.per_block * (self.layers - first) for first in range(self.layers + 1)]


def ranking_operations(shape: Shape, tokens: int, passes: int) -> float:
    """Return the operations of the passes of a ranking: one forward, and backward passes to the activations.

    Args:
        shape: The model.
        tokens: Of all prompts.
        passes: Backward passes per prompt: one per probe, and one for the loss unless probes span the outputs.

    Returns:
        Floating-point operations, two per weight and pass; attention's own products, the unembedding and what the
        ranking does beside the passes are left out.
    """
    return 2.0 * shape.layers * shape.per_block * tokens * (1 + passes)


def ranking_features(shape: Shape, prompts: int, passes: int, plan: SketchPlan | None = None) -> float:
    """Return the bytes of the sketched features of a ranking.

    As :func:`~steerscope.analysis.capture.features.feature_bytes` bounds them for a loaded model.

    Args:
        shape: The model.
        prompts: Number of prompts.
        passes: Backward passes per prompt.
        plan: Size of the sketches.

    Returns:
        Bytes, proportional to prompts and passes.
    """
    plan = plan or SketchPlan(exact=False)
    numbers = shape.sites * plan.blocks * plan.size**2 + shape.write_points * plan.blocks * plan.size
    units = shape.sites + shape.write_points  # numbers are rounded to a byte, each feature with a unit of its own
    return float((numbers + plan.weight_size**2 + 4 * (units + 1)) * prompts * passes)


def sweep_operations(shape: Shape, layers: Sequence[int], tokens: int, tries: int, seeds: int) -> float:
    """Return the operations of a sweep over all kinds of sites at some layers.

    Args:
        shape: The model.
        layers: At which edits are trained.
        tokens: Of one run, over all its steps.
        tries: Runs that choose a site's learning rate, with the first seed.
        seeds: Training seeds.

    Returns:
        Floating-point operations of training alone; tests and what lies below an edit are left out. Edits of a block's
        output count with that block, which a sweep does not run for them.
    """
    runs = shape.kinds * (tries + seeds - 1)
    per_token = shape.operations_per_token()
    return runs * tokens * sum(per_token[layer] for layer in layers)
