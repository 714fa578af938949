"""Load a causal language model, find its sites, read and edit them."""

from steerscope.model_identity import ModelIdentity
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.blocks import Block
from steerscope.models.description import BlockDescription
from steerscope.models.hooks import edited, reading, tapping
from steerscope.models.load import LoadedModel, load_model, wrap_model
from steerscope.models.precision import true_float64
from steerscope.models.site_map import SiteMap, find_sites

__all__ = [
    "Block",
    "BlockDescription",
    "LoadedModel",
    "ModelIdentity",
    "SiteMap",
    "edited",
    "find_sites",
    "forward_differentiable_attention",
    "load_model",
    "reading",
    "tapping",
    "true_float64",
    "wrap_model",
]
