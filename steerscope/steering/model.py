"""A language model with steering edits in it: what people know from PEFT, for activations.

The edits are hooks on the model that was given: nothing in it is replaced, and :meth:`SteeringModel.unload` takes
exactly these hooks away again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.folders import as_folder
from steerscope.models.description import BlockDescription
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import require_runs
from steerscope.models.packed import num_weights
from steerscope.models.site_map import SiteMap, find_sites
from steerscope.models.upper_blocks import with_forward
from steerscope.models.wrappers import decoder_of, is_peft, language_model, require_model, tuner_layers
from steerscope.sites import Site
from steerscope.steering import (
    beneath,
    control_vectors,
    fused_heads,
    lora_export,
    merging,
    scales,
)
from steerscope.steering.adapters import DEFAULT, Adapter, checked_name
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import SteeringEdit
from steerscope.steering.identity import BaseIdentity
from steerscope.steering.named import INSTEAD, no_attribute, refused_method
from steerscope.steering.passes import Passes, passes_on
from steerscope.steering.running import SteeredRuns
from steerscope.steering.saved_adapters import SavedAdapters


class SteeringModel(SavedAdapters, SteeredRuns):
    """A causal language model with trainable edits at sites; made by :func:`get_steering_model`.

    Attributes:
        base_model: The model that was given, plain or wrapped by PEFT.
        steering_config: The configuration of the adapter that acts.
        sites: Where it edits, in the order of computation.
    """

    # Asked for by transformers' Trainer when keys are missing from a checkpoint.
    _keys_to_ignore_on_save: list[str] | None = None

    def __init__(
        self,
        base_model: nn.Module,
        config: SteeringConfig,
        site_map: SiteMap,
        loaded: LoadedModel | None,
        adapter_name: str = DEFAULT,
    ):
        super().__init__()
        if steered_by(base_model) is not None:
            raise InputError(
                "this model is steered already, by an adapter that was not unloaded; call "
                "steerscope.steering.steered_by(model).unload() first, or name all sites in one configuration."
            )
        require_runs(base_model)
        self._tuner_layers = tuner_layers(base_model)
        if self._tuner_layers and not is_peft(base_model):
            raise InputError(
                "this model has layers of PEFT in it but not its wrapper (transformers' add_adapter, for example), so "
                "they could not be saved with the edits. Give the plain model, or one that peft.get_peft_model wrapped."
            )
        self.base_model = base_model
        self.site_map, self._loaded = site_map, loaded
        self._identity: BaseIdentity | None = None
        adapter = Adapter(checked_name(adapter_name), config, site_map)
        self._were_trainable = [p for p in base_model.parameters() if p.requires_grad]
        self.edits, self._adapters = adapter.edits, {}
        _freeze(base_model)
        self._passes = Passes(self, adapter, base_model, decoder_of(base_model), site_map.blocks)
        self._hooks = ExitStack()
        self._hooks.callback(self._passes.close)
        try:
            self._put(adapter)
        except BaseException:
            self._hooks.close()
            raise

    def edit_at(self, site: Site | str) -> SteeringEdit:
        """Return the edit at a site.

        Raises:
            InputError: There is none.
        """
        found = self.site_map.resolve(site)
        if found not in self.sites:
            raise InputError(f"this adapter does not edit '{found}'; it edits {', '.join(map(str, self.sites))}.")
        return self.adapter().edit_at(found)

    @property
    def edited_tokens(self) -> Tensor | None:
        """Which tokens this thread's latest pass edited, ``(batch token)``; None for all of them."""
        return self._passes.latest.mask

    # --- measuring and counting ---

    def measure_scales(self, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
        """Measure what sites read, for ``scale="rms"``; see :func:`steerscope.steering.scales.measure_scales`."""
        with self.disable_adapter(keep_lora=True):
            found = scales.measure_scales(self.base_model, self.site_map, self.sites, batches)
        for site, value in found.items():
            self.edit_at(site).set_scale(value)
        return {str(site): value for site, value in found.items()}

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many numbers are trained (a trained LoRA's included), and how many there are."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad), num_weights(self)

    def print_trainable_parameters(self) -> None:
        """Print the same in one line."""
        trained, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")

    # --- for other programs ---

    def export_lora(self, folder: str | Path, *, lora_bias: bool = False) -> None:
        """Write the adapter that acts as a LoRA in PEFT's format, with the same outputs: for PEFT, vLLM, SGLang, ...

        Exact, strength included, where one linear map holds the edit (:func:`servable_as_lora` says where).

        Args:
            folder: Where to write ``adapter_config.json`` and ``adapter_model.safetensors``.
            lora_bias: Whether the LoRA may add constants (PEFT's ``lora_bias``), as vectors and edits with a bias need.
                PEFT runs such a file, vLLM and SGLang do not.

        Raises:
            InputError: No LoRA is exactly this adapter (edits of the stream, nonlinear ones, positions other than
                ``all``), it needs a bias, it stands on PEFT's, or the folder holds something else.

        Cost: a product of the map's weight and the edit's factors per site, in float64.
        """
        lora_export.export_lora(self, as_folder(folder), lora_bias=lora_bias)

    def export_gguf(self, file: str | Path) -> None:
        """Write the vectors of the adapter that acts as a control vector of llama.cpp, strength included.

        ``direction.N`` is added to the residual stream after block N, counted from 0, in llama.cpp as here.

        Args:
            file: Where to write; an earlier control vector is replaced.

        Raises:
            InputError: An edit is no vector of the stream behind a block other than the first, or of all tokens; the
                adapter stands on PEFT's; the package gguf is not installed; or another file is there.
        """
        control_vectors.export_gguf(self, as_folder(file))

    # --- taking it off ---

    def unload(self) -> nn.Module:
        """Remove the edits and return the base model as it was; only hooks set here are removed."""
        for adapter in self._adapters.values():
            adapter.hooks.close()
        self._hooks.close()
        for parameter in self._were_trainable:
            parameter.requires_grad_(True)
        return self.base_model

    def merge_and_unload(self, *, make_biases: bool = False) -> nn.Module:
        """Write the edits into weights and biases where they can be held exactly, and return the base model.

        A LoRA underneath is merged first, since the edits read what it writes.
        :func:`steerscope.steering.merging.merge` says what can be merged where.

        Returns:
            The plain model.

        Raises:
            InputError: An edit cannot be held by the model's weights; the message says why. Nothing was changed.
        """
        plain = language_model(self.base_model)
        merging.merge(self, make_biases=make_biases)
        self.unload()
        return plain

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a trainer's fused head goes to the language model, see :mod:`.fused_heads`."""
        if name == "forward" and fused_heads.is_fused(value):
            inner = language_model(self.base_model)
            self._hooks.enter_context(with_forward({inner: fused_heads.inside_of(inner, value)}))
            return
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: Any) -> SteeringModel:
        """Refuse: the copy's hooks would use the edits of the original."""
        raise _no_copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled or copied, for the same reason."""
        raise _no_copy()

    def __getattr__(self, name: str) -> Any:
        """Look up what is not here in the base model, as PEFT's wrappers do."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            if name in INSTEAD and not is_peft(self.base_model):
                return refused_method(name)
            try:
                return getattr(self.base_model, name)
            except AttributeError as error:
                raise no_attribute(name) or error from None


def get_steering_model(
    model: nn.Module | LoadedModel,
    config: SteeringConfig,
    *,
    adapter_name: str = DEFAULT,
    description: BlockDescription | None = None,
) -> SteeringModel:
    """Put steering edits into a causal language model, ready to train.

    Args:
        model: A transformers model, plain or wrapped by PEFT, or what :func:`steerscope.load_model` returned. Its
            own weights are frozen; a LoRA's stay as they are.
        config: Which edits, and where.
        adapter_name: What the adapter is called, where further ones are put beside it (:meth:`add_adapter`).
        description: How the model's blocks are built, for a family steerscope does not know.

    Returns:
        The model with edits that start as no edit and alone have gradients, beside a LoRA's.

    Raises:
        InputError: The model lacks a site of the configuration, or has edits already.
        UnsupportedModelError: The layout is unknown.
    """
    loaded = model if isinstance(model, LoadedModel) else None
    inner = model.model if isinstance(model, LoadedModel) else model
    if isinstance(inner, SteeringModel):
        raise InputError("this model is steered already; call unload() first, or name all sites in one configuration.")
    require_model(inner)
    if not isinstance(config, SteeringConfig):
        raise InputError(
            f"expected a SteeringConfig, got {type(config).__name__}; for example "
            "get_steering_model(model, SteeringConfig(sites='resid_post'))."
        )
    beneath.require_kept(inner)
    site_map = loaded.site_map if loaded is not None and description is None else find_sites(inner, description)
    return SteeringModel(inner, config, site_map, loaded, adapter_name)


def steered_by(model: nn.Module) -> SteeringModel | None:
    """Return the steering model whose edits act in a model, or None; for a handle that was lost."""
    passes = passes_on(decoder_of(model))
    owner = None if passes is None else passes.owner
    return owner if isinstance(owner, SteeringModel) else None


def _no_copy() -> InputError:
    return InputError(
        "a steering model cannot be copied or pickled; save_pretrained() it, and put it on a second copy of the base "
        "model with from_pretrained(). For the base model's outputs use disable_adapter()."
    )


def _freeze(model: nn.Module) -> None:
    """Freeze a plain model. PEFT has frozen what it does not train, and what it trains (biases too) goes on."""
    if not is_peft(model):
        model.requires_grad_(False)
