"""What is trained: edits at sites, and LoRA and full fine-tuning to read their outcomes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from steerscope.experiments.engine.candidate import Candidate
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.pack import Pack
from steerscope.experiments.engine.rate_grid import EDIT_START
from steerscope.experiments.engine.spec import RunSpec
from steerscope.experiments.training.trainee import lora
from steerscope.models.blocks import linear_shape
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.sites import Site, parse_site
from steerscope.steering.build import build_edits
from steerscope.steering.config import SteeringConfig
from steerscope.steering.weights import WeightModel

# Where searches for a learning rate begin, as places on the grid of half decades: 3e-3 for edits, 1e-3 for LoRA, 1e-4
# for full fine-tuning.
START = {"edit": EDIT_START["none"], "lora": -6, "sft": -8}


def edit_at(sites: Sequence[Site], rank: int) -> Candidate:
    """Return the linear edit that ``steerscope train`` trains by default, at a site or at several together.

    Args:
        sites: One site, or several that are edited together.
        rank: Rank of each edit.

    Returns:
        What a sweep trains; its name is the sites', joined by ``+``.
    """
    names = tuple(str(site) for site in sites)
    config = SteeringConfig(sites=names, family="linear", rank=rank)
    group = str(sites[0].kind) if len(sites) == 1 else "set"
    return Candidate("+".join(names), config, START["edit"], group)


def weights_of(loaded: LoadedModel, method: str, rank: int) -> Candidate:
    """Return LoRA of the linear maps of all blocks (``lora``), or full fine-tuning (``sft``).

    Args:
        loaded: The model.
        method: ``lora`` or ``sft``.
        rank: Rank of the LoRA; full fine-tuning has none.

    Returns:
        What a sweep trains, one run at a time.
    """

    def build(learning_rate: float, seed: int) -> tuple[Pack, Callable[[], object]]:
        spec = RunSpec(None, learning_rate, seed)
        pad = pad_token(loaded.tokenizer, loaded.model)
        if method == "lora":
            wrapped = lora(loaded, rank, seed)
            return ModelPack(wrapped.eval(), spec, pad), wrapped.unload
        whole = WeightModel(loaded, method)
        return ModelPack(whole.eval(), spec, pad), whole.restore

    return Candidate(method, None, START[method], method, build)


def sites_of(method: str) -> tuple[Site, ...]:
    """Return the sites that the name of a candidate, ``3.mlp_out+9.resid_post``, stands for."""
    return tuple(parse_site(name) for name in method.split("+"))


def num_params(loaded: LoadedModel, one: Candidate, rank: int) -> int:
    """Return how many numbers a candidate trains.

    Args:
        loaded: The model.
        one: The candidate.
        rank: Of a LoRA.

    Returns:
        A number of parameters.
    """
    if one.config is not None:
        edits = build_edits(one.config, loaded.site_map).values()
        return sum(parameter.numel() for edit in edits for parameter in edit.parameters())
    if one.name == "sft":
        return loaded.identity.n_params
    return sum(rank * sum(linear_shape(module)) for module in loaded.site_map.linear_maps().values())
