"""A short, real fine-tuning: what it does to the weights, as one update per matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from steerscope.analysis.capture.outputs import batch_outputs, make_probes
from steerscope.analysis.data.encoding import batches, encode_for
from steerscope.analysis.data.examples import Example
from steerscope.analysis.theory.common import weight_names
from steerscope.errors import InputError
from steerscope.finite import OVERFLOW, require_finite
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.models.wrappers import vocab_size

# Called with steps done, steps in all and the loss of the last step (nan before the first).
Progress = Callable[[int, int, float], None]


def short_finetune(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    steps: int = 12,
    learning_rate: float = 5e-5,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Fine-tune all linear maps of the blocks for a few steps of AdamW and return what changed.

    The loss is that of the completion's tokens, or of the right choice among the choices. Norms, biases and embeddings
    stay fixed, there is no weight decay. The model is left bit for bit as it was.

    Args:
        loaded: The model, in float32 or float64.
        examples: What to train on; batches are drawn from a seeded shuffle, over and over.
        steps: Optimizer steps.
        learning_rate: AdamW's, constant.
        seed: Seed of the shuffle.
        batch_size: Examples per step.
        progress: Called after every step.

    Returns:
        New weight minus old weight, by parameter name.

    Raises:
        InputError: No examples, a number out of range, a data type that cannot be trained like this, or a loss that
            is not finite.

    Cost: three times a forward pass over ``steps x batch_size`` examples; four copies of the weights.
    """
    for what, value in {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}.items():
        if not value > 0:
            raise InputError(f"{what} is {value}; expected a positive number.")
    named = dict(loaded.model.named_parameters())
    weights = {name: named[name] for name in weight_names(loaded).values()}
    if odd := {str(w.dtype) for w in weights.values()} - {"torch.float32", "torch.float64"}:
        raise InputError(f"the weights are {', '.join(sorted(odd))}; expected float32. Load the model in float32.")
    encoded = encode_for(loaded, examples)
    probes = make_probes(encoded, 1, vocab_size(loaded.model), seed, torch.float32)
    order = _shuffled_batches(len(examples), batch_size, seed)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        optimizer = torch.optim.AdamW(weights.values(), lr=learning_rate, weight_decay=0.0)
        for step in range(steps):
            chosen = next(order)
            optimizer.zero_grad()
            total = 0.0
            for batch in batches(
                encoded,
                batch_size=max(len(chosen), max(encoded.num_choices)),
                pad_id=pad_token(loaded.tokenizer, loaded.model),
                device=loaded.device,
                examples=chosen,
            ):
                with torch.enable_grad():
                    outputs = batch_outputs(loaded.model, batch, encoded, probes)
                    loss = -outputs.log_likelihood.sum() / len(chosen)
                    loss.backward()
                total += float(loss.detach())
            advice = f"Use a smaller learning rate than {learning_rate}." if step else OVERFLOW
            require_finite(f"the loss of step {step + 1}", total, advice=advice)
            optimizer.step()
            if progress is not None:
                progress(step + 1, steps, total)
        update = {name: (weight.detach() - before[name]).clone() for name, weight in weights.items()}
        for name, change in update.items():
            require_finite(
                f"the change of {name!r}", change, advice=f"Use a smaller learning rate than {learning_rate}."
            )
        return update
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
                weight.requires_grad_(flags[name])
                weight.grad = None


def mean_loss(loaded: LoadedModel, examples: Sequence[Example], batch_size: int = 8) -> float:
    """Return the loss that :func:`short_finetune` trains on, mean over examples. Cost: a forward pass over them.

    Args:
        loaded: The model.
        examples: All with choices, or all without.
        batch_size: Sequences per forward pass.

    Returns:
        Minus the log-likelihood of the right answer, in nats.
    """
    encoded = encode_for(loaded, examples)
    probes = make_probes(encoded, 1, vocab_size(loaded.model), 0, torch.float32)
    total = 0.0
    for batch in batches(
        encoded, batch_size=batch_size, pad_id=pad_token(loaded.tokenizer, loaded.model), device=loaded.device
    ):
        with torch.no_grad():
            total -= float(batch_outputs(loaded.model, batch, encoded, probes).log_likelihood.sum())
    require_finite("the loss", total)
    return total / len(examples)


def _shuffled_batches(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of different examples, from a new order each time all have been seen."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, batch_size):
            yield sorted(order[start : start + batch_size])
