"""The part of :class:`SteeringModel` for several named adapters, one of which acts, and for how strongly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError, did_you_mean
from steerscope.models.hooks import Tap, tapping
from steerscope.models.load import LoadedModel
from steerscope.models.site_map import SiteMap
from steerscope.models.virtual_tokens import require_no_virtual_tokens
from steerscope.models.wrappers import language_model, tuner_layers
from steerscope.sites import Site
from steerscope.steering import beneath
from steerscope.steering.adapters import Adapter, checked_name, checked_strength
from steerscope.steering.config import SteeringConfig
from steerscope.steering.identity import BaseIdentity, identify
from steerscope.steering.passes import Passes

# Methods of adapters that transformers' mixin and PEFT have for other sorts, and what to call here.
INSTEAD = {
    "merge_adapter": "merge_and_unload(), which cannot be undone, or keep a copy of the model",
    "unmerge_adapter": "save_pretrained() before merge_and_unload(), and load the adapter on the model again",
    "add_weighted_adapter": "one adapter per mixture: add the vectors yourself, or export_lora() and let PEFT mix",
    "enable_adapters": "disable_adapter(), a context manager that leaves by itself",
    "disable_adapters": "disable_adapter(), a context manager, or set_strength(0)",
    "enable_adapter_layers": "disable_adapter(), a context manager that leaves by itself",
    "disable_adapter_layers": "disable_adapter(), a context manager, or set_strength(0)",
    "get_adapter_state_dict": "state_dict(), which holds the adapter that acts",
    "enable_peft_hotswap": "load_adapter(folder, name) and set_adapter(name), which need no preparation",
}


def refused_method(name: str) -> Callable[..., Any]:
    """Return a function that says what to call in place of a method of other adapters."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise InputError(f"{name}() is for adapters of PEFT, and this model has none; use {INSTEAD[name]}.")

    return refuse


def no_attribute(name: str) -> AttributeError | None:
    """Return the error for an attribute that PEFT's models have and this one has not, ``None`` for any other name."""
    peft = sys.modules.get("peft")  # slow to load; who never did looks for no attribute of it
    if name.startswith("_") or peft is None or not (name == "peft_config" or hasattr(peft.PeftModel, name)):
        return None
    return AttributeError(
        f"{name!r} is of PEFT's models, and this one has steerscope's edits; expected steering_config, sites, "
        "adapter_names, active_adapter, adapter(name) or edit_at(site), which say what there is here."
    )


class NamedAdapters(nn.Module):
    """A model with edits under names; one name's edits act at a time.

    What is registered as a module, and so trained, counted and kept in checkpoints, is the adapter that acts.
    """

    base_model: nn.Module
    site_map: SiteMap
    edits: nn.ModuleDict
    _adapters: dict[str, Adapter]
    _passes: Passes
    _loaded: LoadedModel | None
    _tuner_layers: set[nn.Module]

    # --- which ---

    @property
    def active_adapter(self) -> str:
        """The name of the adapter that acts."""
        return self._passes.adapter.name

    @property
    def active_adapters(self) -> list[str]:
        """The same as a list of one."""
        return [self.active_adapter]

    @property
    def adapter_names(self) -> list[str]:
        """The names of all adapters on the model, in the order in which they came."""
        return list(self._adapters)

    @property
    def steering_config(self) -> SteeringConfig:
        """The configuration of the adapter that acts."""
        return self._passes.adapter.config

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the adapter that acts edits, in the order of computation."""
        return self._passes.adapter.sites

    def adapter(self, name: str | None = None) -> Adapter:
        """Return an adapter by its name, the one that acts for None.

        Raises:
            InputError: There is none of that name, or several names were given.
        """
        if name is None:
            return self._passes.adapter
        if not isinstance(name, str):
            raise InputError(
                f"expected the name of one adapter, got {name!r}: one acts at a time. Vectors can be added up into one "
                "adapter of their own."
            )
        if name not in self._adapters:
            raise InputError(
                f"this model has no adapter {name!r}.{did_you_mean(name, self.adapter_names)} It has "
                f"{', '.join(self.adapter_names)}."
            )
        return self._adapters[name]

    # --- adding, choosing, taking away ---

    def add_adapter(self, adapter_name: str, config: SteeringConfig) -> None:
        """Put further edits beside those that are there, as they start; :meth:`set_adapter` makes them act.

        Args:
            adapter_name: What it is to be called.
            config: Which edits, and where.

        Raises:
            InputError: The name is taken or cannot be one, or the model lacks a site.
        """
        if not isinstance(config, SteeringConfig):
            raise InputError(
                f"add_adapter() got {type(adapter_name).__name__} and {type(config).__name__}; expected a name and a "
                "SteeringConfig: add_adapter('polite', SteeringConfig(sites='12.resid_post'))."
            )
        self._put(Adapter(self._new_name(adapter_name), config, self.site_map))

    def _new_name(self, name: str) -> str:
        if checked_name(name) in self._adapters:
            raise InputError(
                f"this model has an adapter {name!r} already; delete_adapter({name!r}) first, or use another name."
            )
        return name

    def _put(self, adapter: Adapter) -> None:
        """Set the hooks of an adapter, which act when it does."""
        if adapter.config.positions != "all":
            require_no_virtual_tokens(
                self.base_model, f"positions {adapter.config.positions!r} are counted without them"
            )
        taps = {site: self._tap(adapter, site) for site in adapter.sites}
        adapter.hooks.enter_context(tapping(self.site_map, taps, every_thread=True))
        self._adapters[adapter.name] = adapter

    def _tap(self, adapter: Adapter, site: Site) -> Tap:
        edit = adapter.edit_at(site)

        def tap(value: Tensor, read: Tensor) -> Tensor | None:
            current = self._passes.current
            if not current.has(adapter):
                return None
            added, mask = edit(read), current.mask
            if current.strength != 1:
                added = current.strength * added
            if mask is not None:
                if self.site_map.description.reads_below:
                    # Gemma 4 computes upper layers at the last tokens alone, those whose logits are kept.
                    mask = mask[:, -added.shape[1] :]
                added = torch.where(mask.to(added.device).unsqueeze(-1), added, 0)
            return value + added.to(value)  # what it reads may be on another device than the block

        return tap

    def set_adapter(self, adapter_name: str) -> None:
        """Let another adapter act, from the next pass on, in all threads; each keeps what of it is trained.

        An optimizer goes on training the parameters it was given: make a new one.

        Raises:
            InputError: There is none of that name, or several were given.
        """
        if adapter_name is None:
            raise InputError("set_adapter() got None; expected a name. disable_adapter() runs the model without edits.")
        chosen = self.adapter(adapter_name)
        self._passes.adapter, self.edits = chosen, chosen.edits

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter away that does not act.

        Raises:
            InputError: It acts, or there is none of that name.
        """
        adapter = self.adapter(adapter_name)
        if adapter is self._passes.adapter:
            raise InputError(
                f"the adapter {adapter.name!r} acts; set_adapter() another one first, or unload() to take them all off."
            )
        adapter.hooks.close()
        del self._adapters[adapter.name]

    # --- on which model ---

    def get_base_model(self) -> nn.Module:
        """Return the transformers model, inside PEFT's wrapper if there is one; edits go on acting in it."""
        return language_model(self.base_model)

    def identity(self, *, weights: bool = True) -> BaseIdentity:
        """Return which model is underneath, as an adapter's file says; reads its weights unless told not to."""
        without = beneath.overwritten_in(self.base_model)
        return identify(self.base_model, self.site_map, self._loaded, weights=weights, without=without)

    def _require_lora_beneath(self) -> None:
        if tuner_layers(self.base_model) - self._tuner_layers:
            raise InputError(
                "PEFT put layers into this model after it was steered: edits inside blocks may miss what they do, and "
                "save_pretrained() would not hold them. Wrap the plain model with PEFT first, then steer the result."
            )
        if self._tuner_layers - tuner_layers(self.base_model):
            raise InputError(
                "layers of PEFT were taken out of this model after it was steered (unload() or merge_and_unload() of "
                "PEFT's wrapper), so the edits stand on another model. unload() them, and steer what PEFT returned."
            )

    # --- how strongly ---

    @property
    def strength(self) -> float:
        """What edits add is multiplied by, in passes of this thread or task; 1 as trained."""
        return self._passes.strength

    def set_strength(self, strength: float, adapter_name: str | None = None) -> None:
        """Multiply what an adapter adds: ``x + strength * (edit(x) - x)``, for any family; in all threads.

        The number is the adapter's: it is saved with it, merged and exported.

        Args:
            strength: 1 as trained, 0 for no edit, -1 for the reverse, or any finite number.
            adapter_name: Whose; that of the adapter that acts unless said.

        Raises:
            InputError: It is no finite number, or there is no such adapter.
        """
        self.adapter(adapter_name).strength = checked_strength(strength)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Multiply by another number inside the context, in this thread or task; nothing of it is saved.

        Raises:
            InputError: It is no finite number.
        """
        with self._passes.at_strength(checked_strength(strength)):
            yield

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NamedAdapters:
        """Move the adapters that do not act as well, so that they are where the model is."""
        super()._apply(fn, recurse)
        for adapter in self._adapters.values():
            if adapter.edits is not self.edits:
                adapter.edits._apply(fn, recurse)
        return self
