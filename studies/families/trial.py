"""Try one family: load a tiny random model of it, check its sites, train, save and load an adapter, rank its sites."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from steerscope import (
    BlockDescription,
    LoadedModel,
    RankOptions,
    SteeringConfig,
    SteeringModel,
    check_sites,
    find_sites,
    get_steering_model,
    rank_sites,
    wrap_model,
)
from steerscope.analysis.data.examples import Example
from steerscope.errors import InputError
from steerscope.models.layouts import FAMILIES as KNOWN
from studies.families.tiny import VOCAB, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Trial:
    """What came of a family.

    Attributes:
        family: The ``model_type``.
        outcome: ``supported``, ``refused``, ``not built`` (no tiny random model) or ``broken`` (a fault of ours).
        reason: Why it is not supported.
        layout: The layout of its blocks.
        kinds: Kinds of site that it has.
        heads: Whether single heads are sites.
        left_out: Weights that are no part of what stands for fine-tuning, those of all blocks.
        known: Whether the layout came from the table of known families.
        ranked: Whether its sites were ranked, too.
        seconds: What it took.
    """

    family: str
    outcome: str
    reason: str = ""
    layout: str = ""
    kinds: tuple[str, ...] = ()
    heads: bool = False
    left_out: tuple[str, ...] = ()
    known: bool = False
    ranked: bool = False
    seconds: float = 0.0

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Trial:
        """Return what was kept as a dictionary."""
        return cls(**{**told, "kinds": tuple(told["kinds"]), "left_out": tuple(told["left_out"])})

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)


def try_family(family: str, *, rank: bool = True) -> Trial:
    """Try one family on a tiny random model.

    Args:
        family: The ``model_type``.
        rank: Whether to rank its sites, which takes most of the time.

    Returns:
        What came of it.
    """
    began = time.process_time()
    try:
        model = tiny_model(family)
        ids = torch.arange(4, 10)[None]
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # whatever a family's own code raises for a configuration of small sizes
        return Trial(family, "not built", _first_line(error))
    try:
        loaded = wrap_model(model, tiny_tokenizer(), name=family)
    except InputError as error:
        return Trial(family, "refused", str(error), seconds=time.process_time() - began)
    told = loaded.site_map.description
    found = Trial(
        family,
        "supported",
        layout=told.layout,
        kinds=tuple(kind.value for kind in told.kinds),
        heads=loaded.site_map.n_heads > 0,
        left_out=tuple(sorted({name for one in (told, *told.by_layer) for name in one.left_out})),
        known=told in KNOWN.values(),
    )
    steps: list[tuple[str, Callable[[LoadedModel], None]]] = [
        ("negative controls", require_controls_fail),
        ("an adapter", train_save_and_load),
    ]
    if rank:
        steps.append(("a ranking", rank_few))
    for what, step in steps:
        try:
            step(loaded)
        except Exception as error:  # a fault of ours, which the table is to show
            return Trial(family, "broken", f"{what}: {_first_line(error)}", layout=told.layout)
    return Trial(**{**found.as_dict(), "ranked": rank, "seconds": time.process_time() - began})


def wrong_descriptions(told: BlockDescription, multipliers: tuple[float, float]) -> dict[str, BlockDescription]:
    """Return descriptions of a block that are not true, by what is wrong with them.

    Args:
        told: The true one.
        multipliers: What attention's and the MLP's outputs are really multiplied by.
    """
    found = {
        "attention's multiplier": replace(told, attn_scale=1.5 * multipliers[0]),
        "the MLP's multiplier": replace(told, mlp_scale=1.5 * multipliers[1]),
        "parallel or not": replace(told, parallel=not told.parallel),
    }
    for what, wrong, has in (
        ("no norm before attention", replace(told, attn_norm=None), told.attn_norm),
        ("no norm before the MLP", replace(told, mlp_norm=None), told.mlp_norm),
        ("no norm behind attention", replace(told, attn_post_norm=None), told.attn_post_norm),
        ("no norm behind the MLP", replace(told, mlp_post_norm=None), told.mlp_post_norm),
        ("no norm of the stream after attention", replace(told, mid_norm=None), told.mid_norm),
        ("no norm of the stream after the MLP", replace(told, end_norm=None), told.end_norm),
        ("no end of its own", replace(told, own_end=False), told.own_end or None),
    ):
        if has is not None:
            found[what] = wrong
    return found


def require_controls_fail(loaded: LoadedModel) -> None:
    """Require that the self-check refuses false descriptions of a model's first block.

    Raises:
        AssertionError: It passed one.
    """
    told, first = loaded.site_map.description, loaded.site_map.blocks[0]
    true = told.of_layer(0)
    for what, wrong in wrong_descriptions(true, (first.attn_scale, first.mlp_scale)).items():
        given = replace(told, by_layer=(wrong, *told.by_layer[1:])) if told.by_layer else wrong
        try:
            check_sites(loaded.model, find_sites(loaded.model, given))
        except InputError:
            continue
        raise AssertionError(f"the self-check passed a false description ({what})")


def train_save_and_load(loaded: LoadedModel) -> None:
    """Train an adapter at every kind of site of a layer for one step, save it and load it again.

    Raises:
        AssertionError: Nothing was learned, or the loaded adapter computes something else.
    """
    layer = len(loaded.site_map.blocks) // 2
    sites = tuple(str(site) for site in loaded.site_map.sites() if site.layer == layer)
    ids = torch.randint(4, VOCAB - 1, (2, 8), generator=torch.Generator().manual_seed(1))
    steering = get_steering_model(loaded, SteeringConfig(sites=sites, rank=2))
    try:
        before = _logits(steering, ids)
        optimizer = torch.optim.SGD([one for one in steering.parameters() if one.requires_grad], lr=1.0)
        steering.train()
        logits = steering(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        for site in sites:
            assert any(bool(one.grad.any()) for one in _parameters(steering, site)), f"no gradient reached {site}"
        optimizer.step()
        steering.eval()
        after = _logits(steering, ids)
        assert not torch.equal(before, after), "a step of training changed nothing"
        with TemporaryDirectory() as folder:
            steering.save_pretrained(Path(folder) / "adapter")
            steering.unload()
            plain = loaded.model(input_ids=ids, use_cache=False).logits
            assert torch.equal(plain, before), "the model is not as it was before the adapter"
            again = SteeringModel.from_pretrained(loaded, Path(folder) / "adapter")
            assert torch.equal(_logits(again, ids), after), "the loaded adapter computes something else"
            again.unload()
    finally:
        steering.unload()
        loaded.model.eval()


def _parameters(steering: SteeringModel, site: str) -> list[Any]:
    return [one for one in steering.edit_at(site).parameters() if one.requires_grad and one.grad is not None]


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def rank_few(loaded: LoadedModel) -> None:
    """Rank the sites of a model by 24 examples.

    Raises:
        AssertionError: A score is no number.
    """
    examples = [
        Example(f"{3 * i % 31} {i} {7 * i % 29} =", (" yes", " no")[i % 2], (" yes", " no"), i % 2) for i in range(24)
    ]
    ranking = rank_sites(loaded, examples, RankOptions(num_probes=1, batch_size=8))
    assert all(math.isfinite(one.score) for one in ranking.sites), "a score is no number"


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:240]
