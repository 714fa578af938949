"""A language model with steering edits in it: what people know from PEFT, for activations.

The edits are hooks on the model that was given: nothing in it is replaced, and :meth:`SteeringModel.unload` takes
exactly these hooks away again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from steerscope.errors import InputError
from steerscope.models.compat import checkpoint_activations
from steerscope.models.description import BlockDescription
from steerscope.models.hooks import Tap, tapping
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import require_weights_in_memory
from steerscope.models.site_map import SiteMap, find_sites
from steerscope.models.virtual_tokens import require_no_tokens_around, require_no_virtual_tokens
from steerscope.models.wrappers import decoder_of, is_peft, language_model, require_model, tuner_layers
from steerscope.site_kinds import Place
from steerscope.sites import Site
from steerscope.steering import beneath, hub, loading, merging, saving, scales
from steerscope.steering.build import build_edits
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import SteeringEdit
from steerscope.steering.identity import identify
from steerscope.steering.passes import Passes, Told, passes_on
from steerscope.steering.positions import Positions


class SteeringModel(nn.Module):
    """A causal language model with trainable edits at sites; made by :func:`get_steering_model`.

    Attributes:
        base_model: The model that was given, plain or wrapped by PEFT.
        steering_config: The adapter's configuration.
        sites: Where it edits, in the order of computation.
    """

    # Asked for by transformers' Trainer when keys are missing from a checkpoint.
    _keys_to_ignore_on_save: list[str] | None = None

    def __init__(self, base_model: nn.Module, config: SteeringConfig, site_map: SiteMap, loaded: LoadedModel | None):
        super().__init__()
        if steered_by(base_model) is not None:
            raise InputError(
                "this model is steered already, by an adapter that was not unloaded; call "
                "steerscope.steering.steered_by(model).unload() first, or name all sites in one configuration."
            )
        require_weights_in_memory(base_model, "steering")
        self._tuner_layers = tuner_layers(base_model)
        if self._tuner_layers and not is_peft(base_model):
            raise InputError(
                "this model has layers of PEFT in it but not its wrapper (transformers' add_adapter, for example), so "
                "they could not be saved with the edits. Give the plain model, or one that peft.get_peft_model wrapped."
            )
        self.base_model = base_model
        self.steering_config, self.site_map, self._loaded = config, site_map, loaded
        edits = build_edits(config, site_map)
        self.sites = tuple(edits)
        self._were_trainable = [p for p in base_model.parameters() if p.requires_grad]
        self.edits = nn.ModuleDict()
        for site, edit in edits.items():
            self.edits[_key(site)] = edit.to(next(site_map.blocks[site.layer].module.parameters()).device)
        _freeze(base_model)
        if config.positions != "all":
            require_no_virtual_tokens(base_model, f"positions {config.positions!r} are counted without them")
        blocks = [block.module for block in site_map.blocks]
        decoder = decoder_of(base_model)
        inside = {blocks[site.layer] for site in self.sites if site.kind.facts.place is Place.INSIDE}
        self._passes = Passes(self, Positions.parse(config.positions), base_model, decoder, blocks, inside)
        self._hooks = ExitStack()
        self._hooks.callback(self._passes.close)
        taps = {site: self._tap(site) for site in self.sites}
        self._hooks.enter_context(tapping(site_map, taps, every_thread=True))

    def edit_at(self, site: Site | str) -> SteeringEdit:
        """Return the edit at a site.

        Raises:
            InputError: There is none.
        """
        found = self.site_map.resolve(site)
        if found not in self.sites:
            raise InputError(f"this adapter does not edit '{found}'; it edits {', '.join(map(str, self.sites))}.")
        edit = self.edits[_key(found)]
        assert isinstance(edit, SteeringEdit)
        return edit

    def _tap(self, site: Site) -> Tap:
        edit = self.edits[_key(site)]

        def tap(value: Tensor, read: Tensor) -> Tensor | None:
            current = self._passes.current
            if not current.is_edited:
                return None
            added, mask = edit(read), current.mask
            if mask is not None:
                added = torch.where(mask.to(added.device).unsqueeze(-1), added, 0)
            return value + added.to(value.dtype)

        return tap

    @property
    def edited_tokens(self) -> Tensor | None:
        """Which tokens this thread's latest pass edited, ``(batch token)``; None for all of them."""
        return self._passes.latest.mask

    # --- running ---

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        steering_mask: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Run the model with its edits.

        Args:
            input_ids: ``(batch token)``.
            attention_mask: ``(batch column)``; cached columns included.
            position_ids: ``(batch token)``.
            labels: ``(batch token)``; where they start to supervise, the prompt ends.
            prompt_lengths: Tokens of every prompt ``(batch)``, padding not counted; overrides ``labels``.
            steering_mask: ``(batch column)``, for positions ``mask``: which tokens are edited.
            others: Whatever else the base model takes.

        Returns:
            What the base model returns.

        Raises:
            InputError: The positions depend on something that was not given, or something was given that they do not
                depend on; labels leave no prompt to edit; or PEFT put a LoRA on after the edits.
        """
        self._require_mask_is_used(steering_mask)
        if self.training:
            self._require_lora_beneath()
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "labels": labels}
        others |= {name: value for name, value in given.items() if value is not None}
        with self._passes.told(Told(prompt_lengths, labels, steering_mask)):
            return self.base_model(input_ids=input_ids, **others)

    def generate(
        self, *args: Any, prompt_lengths: Tensor | None = None, steering_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Generate with the edits; the input is the prompt.

        Args:
            args: The base model's.
            prompt_lengths: Tokens of every prompt ``(batch)``, where the input holds more than the prompt: answers of
                earlier turns, or a cache that was filled with some.
            steering_mask: ``(batch column)``, for positions ``mask``.
            kwargs: The base model's. A steered ``assistant_model`` edits the tokens that its own positions say.

        Returns:
            What the base model's ``generate`` returns.

        Raises:
            InputError: It cannot be told which tokens are the prompt's: of a cache that was filled before, under
                guidance, in code from elsewhere (``custom_generate``), from padding without an attention mask.
        """
        self._require_mask_is_used(steering_mask)
        require_no_tokens_around(self)
        assistant = kwargs.get("assistant_model")
        if isinstance(assistant, SteeringModel):  # it is not asked to generate by itself, from a prompt of its own
            kwargs["assistant_model"] = assistant.base_model
        watchers = [self._passes] if assistant is None else [self._passes, passes_on(decoder_of(assistant))]
        with ExitStack() as stack:
            for passes in {passes: None for passes in watchers if passes is not None}:
                told = passes.of_generation(
                    language_model(self.base_model), args, kwargs, prompt_lengths, steering_mask
                )
                stack.enter_context(passes.told(told))
            return self.base_model.generate(*args, **kwargs)  # type: ignore[operator]

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with continuous batching, as the base model does.

        Args:
            args: The base model's.
            kwargs: The base model's.

        Returns:
            What the base model's ``generate_batch`` returns.

        Raises:
            InputError: The positions are counted in sequences, which a paged cache does not show.
        """
        if self._passes.positions.rule != "all" and self._passes.is_active:
            raise InputError(
                f"positions {self.steering_config.positions!r} are counted in whole sequences, which continuous "
                "batching (generate_batch) does not show. Use generate(), or an adapter with positions 'all'."
            )
        return self.base_model.generate_batch(*args, **kwargs)  # type: ignore[operator]

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

    def _require_mask_is_used(self, steering_mask: Tensor | None) -> None:
        if steering_mask is not None and self._passes.positions.rule != "mask":
            raise InputError(
                f"got a steering_mask, which positions {self.steering_config.positions!r} would ignore. Leave it out, "
                "or build the adapter with positions='mask'."
            )

    @property
    def generation_config(self) -> Any:
        """The language model's own; what is set here is what ``generate`` uses."""
        return language_model(self.base_model).generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        language_model(self.base_model).generation_config = value

    def get_base_model(self) -> nn.Module:
        """Return the transformers model, inside PEFT's wrapper if there is one; edits go on acting in it."""
        return language_model(self.base_model)

    @contextmanager
    def disable_adapter(self, *, keep_lora: bool = False) -> Iterator[None]:
        """Run the model without the edits inside the context, and without a LoRA underneath unless it is kept.

        Other threads and asyncio tasks keep their edits; tasks started inside have none. PEFT switches a LoRA for all
        threads, so passes of others are refused meanwhile.

        Raises:
            InputError: Another thread or task has switched the LoRA off.
        """
        lora = is_peft(self.base_model) and not keep_lora
        with (
            self._passes.switched_off(),
            self._passes.lora_switched_off(self.base_model.disable_adapter) if lora else nullcontext(),  # type: ignore[arg-type]
        ):
            yield

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """Compute blocks again in backward instead of keeping their activations, both kinds of ``use_reentrant``.

        transformers would also ask for gradients of the embeddings, all the way down; here they end at the lowest
        block in which something is trained.

        Args:
            activation_checkpointing_kwargs: Arguments of ``torch.utils.checkpoint``, such as ``use_reentrant``.
            kwargs: Further arguments of the base model's method.
        """
        inner: Any = language_model(self.base_model)
        checkpoint_activations(inner, activation_checkpointing_kwargs, **kwargs)
        inner.disable_input_require_grads()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """Do the same under its older name.

        Args:
            gradient_checkpointing_kwargs: As ``activation_checkpointing_kwargs`` of
                :meth:`activation_checkpointing_enable`.
            kwargs: Further arguments of the base model's method.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def measure_scales(self, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
        """Measure what sites read, for ``scale="rms"``; see :func:`steerscope.steering.scales.measure_scales`."""
        with self.disable_adapter(keep_lora=True):
            found = scales.measure_scales(self.base_model, self.site_map, self.sites, batches)
        for site, value in found.items():
            self.edit_at(site).set_scale(value)
        return {str(site): value for site, value in found.items()}

    # --- counting ---

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many numbers are trained (a trained LoRA's included), and how many there are."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print the same in one line."""
        trained, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")

    # --- saving: the one place that decides what a checkpoint holds ---

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what training changes: the edits, and what is trained underneath, with the rest of its adapter.

        transformers' Trainer saves the state of a wrapper it does not know as one file: with the base model in it,
        checkpoints would be as large as the model, and tied weights make the writer raise.

        Args:
            args: As those of ``nn.Module.state_dict``.
            kwargs: Likewise; ``prefix`` stands before every name.

        Returns:
            Tensors by parameter name.
        """
        prefix = str(kwargs.get("prefix", args[1] if len(args) > 1 else ""))
        full = super().state_dict(*args, **kwargs)
        trained = self._trained_names()
        kept = beneath.kept_with_trained(self.base_model)
        for name in [name for name in full if name.startswith(f"{prefix}base_model.")]:
            if name.removeprefix(prefix) in trained:
                kept.discard(full[name].data_ptr())
        for name in [name for name in full if name.startswith(f"{prefix}base_model.")]:
            if name.removeprefix(prefix) in trained:
                continue
            if full[name].data_ptr() in kept:  # under its first name: what is shared is written once
                kept.discard(full[name].data_ptr())
            else:
                del full[name]
        return full

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what :meth:`state_dict` returned; strict whatever ``strict`` says, since nothing may be missing.

        Args:
            state_dict: Tensors by parameter name.
            strict: Taken for the interface of ``nn.Module``; has no effect.
            assign: Whether tensors are taken over instead of copied, as in ``nn.Module``.

        Returns:
            Empty lists of missing and unexpected names, as ``nn.Module`` returns them.

        Raises:
            InputError: Tensors are missing, unknown or of another shape.
        """
        own, trained = self.state_dict(), self._trained_names()
        # Earlier checkpoints lack what PEFT adds and does not train.
        expected = {n: v for n, v in own.items() if n in state_dict or n in trained or n.startswith("edits.")}
        saving.require_tensors(dict(state_dict), expected, "the checkpoint")
        super().load_state_dict(state_dict, strict=False, assign=assign)
        self.mark_ready()
        return _IncompatibleKeys([], [])

    def mark_ready(self) -> None:
        """Tell edits whose scale came with their tensors that it is known."""
        for site in self.sites:
            edit = self.edit_at(site)
            edit.is_ready = edit.scale is None or bool(torch.isfinite(edit.scale))

    def steering_tensors(self) -> dict[str, Tensor]:
        """Return the edits' tensors by ``site.name``, as they are saved."""
        return {
            f"{site}.{name}": value for site in self.sites for name, value in self.edit_at(site).state_dict().items()
        }

    def save_pretrained(self, folder: str | Path, *, push_to_hub: bool = False, **_: Any) -> None:
        """Write the adapter to a folder, with the LoRA underneath if there is one.

        Writes ``adapter_config.json`` and ``adapter_model.safetensors``, and ``lora/`` in PEFT's own format. Options
        that transformers' Trainer gives to every model are taken and have no effect.

        Args:
            folder: Where to write; created where it does not exist.
            push_to_hub: Refused where it is true.
            _: Further options of the Trainer; no effect.

        Raises:
            InputError: The model has several LoRAs active underneath, or one that was put on after the edits, taken
                out, switched off, or scaled at run time; an edit holds NaN; it is no folder; or it is to be uploaded,
                which :meth:`push_to_hub` does.

        Cost: reads the base model once, for its fingerprint.
        """
        if push_to_hub:
            raise InputError("save_pretrained() writes a folder; call push_to_hub('owner/name') to upload the adapter.")
        place = saving.as_folder(folder)
        self._require_lora_beneath()
        if self._passes.is_without_lora():
            raise InputError(
                "save_pretrained() was called inside disable_adapter(), where the LoRA underneath is off. Leave "
                "disable_adapter(), then save."
            )
        beneath.require_kept(self.base_model)
        adapter = saving.AdapterFile(
            config=self.steering_config,
            base=identify(
                self.base_model, self.site_map, self._loaded, without=beneath.overwritten_in(self.base_model)
            ),
            sites=saving.equations(self.site_map, self.sites),
            lora=beneath.active_adapter(self.base_model),
            tensors=self.steering_tensors(),
        )
        saving.write(place, adapter, self.base_model)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the adapter, with the LoRA underneath if there is one, to a repository on the Hugging Face hub.

        Args:
            repo_id: ``owner/name``; made if it does not exist.
            commit_message: Of the commit.
            private: Whether a new repository is private; the account's default if not said.
            token: Of the account; the one of ``hf auth login`` if not said.
            revision: Branch to commit to.
            create_pr: Whether to open a pull request instead.

        Returns:
            The address of the commit.

        Raises:
            InputError: The hub cannot be reached or refuses, or the model has several LoRAs active underneath.
        """
        return hub.push(
            self.save_pretrained,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module | LoadedModel,
        folder: str | Path,
        *,
        revision: str | None = None,
        is_trainable: bool = False,
        check_weights: bool = True,
        description: BlockDescription | None = None,
        token: str | bool | None = None,
    ) -> SteeringModel:
        """Put a saved adapter on the model it was trained for.

        Args:
            model: The base model, without PEFT: a LoRA that belongs to the adapter is loaded with it.
            folder: What :meth:`save_pretrained` wrote, or the name of a repository (``owner/name``) that
                :meth:`push_to_hub` filled.
            revision: Branch, tag or commit of the repository.
            is_trainable: Whether training continues; otherwise all parameters are frozen, and the model evaluates.
            check_weights: Whether the base model's weights are compared with those the adapter was trained on.
            description: How the model's blocks are built, for a family steerscope does not know.
            token: Of the account, for a repository that is not public; the one of ``hf auth login`` if not said.

        Returns:
            The steered model, in evaluation mode unless ``is_trainable``.

        Raises:
            InputError: No adapter, a damaged or incomplete file, another model or another revision.
        """
        place = hub.local_folder(folder, revision, token)
        return loading.load_onto(
            model,
            place,
            cls,
            is_trainable=is_trainable,
            check_weights=check_weights,
            description=description,
        )

    # --- taking it off ---

    def unload(self) -> nn.Module:
        """Remove the edits and return the base model as it was; only hooks set here are removed."""
        self._hooks.close()
        for parameter in self._were_trainable:
            parameter.requires_grad_(True)
        return self.base_model

    def merge_and_unload(self, *, make_biases: bool = False) -> nn.Module:
        """Write the edits into weights and biases where they can be held exactly, and return the base model.

        A LoRA underneath is merged first, since the edits read what it writes; the result is the plain model.
        :func:`steerscope.steering.merging.merge` says what can be merged where.

        Raises:
            InputError: An edit cannot be held by the model's weights; the message says why. Nothing was changed.
        """
        plain = language_model(self.base_model)
        merging.merge(self, make_biases=make_biases)
        self.unload()
        return plain

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
            return getattr(self.base_model, name)


def get_steering_model(
    model: nn.Module | LoadedModel, config: SteeringConfig, *, description: BlockDescription | None = None
) -> SteeringModel:
    """Put steering edits into a causal language model, ready to train.

    Args:
        model: A transformers model, plain or wrapped by PEFT, or what :func:`steerscope.load_model` returned. Its
            own weights are frozen; a LoRA's stay as they are.
        config: Which edits, and where.
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
    return SteeringModel(inner, config, site_map, loaded)


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


def _key(site: Site) -> str:
    """Return the site as a module's name, which cannot hold a dot."""
    return str(site).replace(".", "-")


def _freeze(model: nn.Module) -> None:
    """Freeze a plain model. PEFT has frozen what it does not train, and what it trains (biases too) goes on."""
    if not is_peft(model):
        model.requires_grad_(False)
