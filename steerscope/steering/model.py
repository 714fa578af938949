"""A language model with steering edits in it: what people know from PEFT, for activations.

The edits are hooks on the model that was given: nothing in it is replaced, and :meth:`SteeringModel.unload` takes
exactly these hooks away again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from steerscope.errors import InputError
from steerscope.folders import as_folder
from steerscope.models.compat import checkpoint_activations
from steerscope.models.description import BlockDescription
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import require_runs
from steerscope.models.packed import num_weights
from steerscope.models.site_map import SiteMap, find_sites
from steerscope.models.virtual_tokens import require_no_tokens_around
from steerscope.models.wrappers import decoder_of, is_peft, language_model, require_model, tuner_layers
from steerscope.sites import Site
from steerscope.steering import (
    beneath,
    control_vectors,
    fused_heads,
    hub,
    loading,
    lora_export,
    merging,
    saving,
    scales,
)
from steerscope.steering.adapters import DEFAULT, Adapter, checked_name
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import SteeringEdit
from steerscope.steering.identity import BaseIdentity, identify
from steerscope.steering.named import INSTEAD, NamedAdapters, refused_method
from steerscope.steering.passes import Passes, Told, passes_on


class SteeringModel(NamedAdapters):
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
        return sum(p.numel() for p in self.parameters() if p.requires_grad), num_weights(self)

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
            Tensors by parameter name; without a prefix also the configuration, as bytes (``adapter_config``), so that
        :meth:`from_pretrained` reads a Trainer's checkpoint.

        Cost: the first call reads the base model once, for its fingerprint.
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
        if not prefix:
            if self._identity is None:  # the base model is frozen: its weights are read once
                self._identity = self.identity()
            saving.with_config(full, self._file(self.adapter(), self._identity))
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
        state_dict = {name: value for name, value in state_dict.items() if name != saving.CHECKPOINT_KEY}
        # Earlier checkpoints lack what PEFT adds and does not train.
        expected = {n: v for n, v in own.items() if n in state_dict or n in trained or n.startswith("edits.")}
        saving.require_tensors(state_dict, expected, "the checkpoint")
        super().load_state_dict(state_dict, strict=False, assign=assign)
        self.mark_ready()
        return _IncompatibleKeys([], [])

    def mark_ready(self) -> None:
        """Tell edits whose scale came with their tensors that it is known."""
        self.adapter().mark_ready()

    def steering_tensors(self) -> dict[str, Tensor]:
        """Return the edits' tensors by ``site.name``, as they are saved."""
        return self.adapter().tensors()

    def identity(self, *, weights: bool = True) -> BaseIdentity:
        """Return which model is underneath, as an adapter's file says; reads its weights unless told not to."""
        without = beneath.overwritten_in(self.base_model)
        return identify(self.base_model, self.site_map, self._loaded, weights=weights, without=without)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        selected_adapters: Iterable[str] | None = None,
        measured: Mapping[str, object] | None = None,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **unknown: Any,
    ) -> None:
        """Write the adapters to a folder, with the LoRA underneath if there is one.

        Writes ``adapter_config.json``, ``adapter_model.safetensors`` and a model card, and ``lora/`` in PEFT's own
        format. As PEFT does, the adapter ``default`` goes into the folder itself, others into one of their name.

        Args:
            folder: Where to write; created where it does not exist.
            selected_adapters: Names of those to write; all unless said.
            measured: What is known of them, for the model card: ``{"Task": "boolq", "Accuracy": 0.81}``.
            is_main_process: Whether this process writes, where several run.
            safe_serialization: Refused where it is false: nothing is pickled.
            push_to_hub: Refused where it is true.
            unknown: Refused: options of other libraries would have no effect.

        Raises:
            InputError: The model has several LoRAs active underneath, or one that was put on after the edits, taken
                out, switched off, or scaled at run time; an edit holds NaN; it is no folder; it is to be uploaded,
                which :meth:`push_to_hub` does; or an option is unknown.

        Cost: reads the base model once, for its fingerprint.
        """
        if push_to_hub:
            raise InputError("save_pretrained() writes a folder; call push_to_hub('owner/name') to upload the adapter.")
        if unknown or not safe_serialization:
            given = ", ".join(unknown) or "safe_serialization=False"
            raise InputError(
                f"save_pretrained() got {given}, which would have no effect: an adapter is one safetensors file, made "
                "of the model as it is. Leave it out."
            )
        places = self._places(as_folder(folder), selected_adapters)
        if is_main_process:
            self._write(places, measured)

    def _places(self, folder: Path, selected: Iterable[str] | None) -> dict[Path, Adapter]:
        """Return where adapters are written: ``default`` into the folder itself, others into one of their name."""
        chosen = [self.adapter(name) for name in (self._adapters if selected is None else selected)]
        if not chosen:
            raise InputError(f"selected_adapters names none; this model has {', '.join(self.adapter_names)}.")
        return {folder if one.name == DEFAULT else folder / one.name: one for one in chosen}

    def _write(self, places: Mapping[Path, Adapter], measured: Mapping[str, object] | None = None) -> None:
        """Write adapters, each to its folder."""
        self._require_lora_beneath()
        if self._passes.is_without_lora():
            raise InputError(
                "save_pretrained() was called inside disable_adapter(), where the LoRA underneath is off. Leave "
                "disable_adapter(), then save."
            )
        beneath.require_kept(self.base_model)
        base = self.identity()
        for place, adapter in places.items():
            saving.write(place, self._file(adapter, base), self.base_model, measured)

    def _file(self, adapter: Adapter, base: BaseIdentity) -> saving.AdapterFile:
        return saving.AdapterFile(
            config=adapter.config,
            base=base,
            sites=saving.equations(self.site_map, adapter.sites),
            lora=beneath.active_adapter(self.base_model),
            tensors=adapter.tensors(),
            strength=adapter.strength,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        selected_adapters: Iterable[str] | None = None,
        measured: Mapping[str, object] | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the adapters, with the LoRA underneath if there is one, to the Hugging Face hub.

        Args:
            repo_id: ``owner/name``; made if it does not exist.
            selected_adapters: Names of those to upload; all unless said. As :meth:`save_pretrained` writes them:
                ``default`` into the repository itself, others into folders of their names.
            measured: What is known of them, for the model card.
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
        names = None if selected_adapters is None else list(selected_adapters)
        self._places(Path(), names)  # refuses names before anything is made on the hub
        return hub.push(
            lambda place: self._write(self._places(place, names), measured),
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
        adapter_name: str = DEFAULT,
        revision: str | None = None,
        is_trainable: bool = False,
        check_weights: bool = True,
        description: BlockDescription | None = None,
        token: str | bool | None = None,
        subfolder: str | None = None,
    ) -> SteeringModel:
        """Put a saved adapter on the model it was trained for.

        Args:
            model: The base model, without PEFT: a LoRA that belongs to the adapter is loaded with it.
            folder: What :meth:`save_pretrained` wrote, or the name of a repository (``owner/name``) that
                :meth:`push_to_hub` filled.
            adapter_name: What it is called on the model, where further adapters are put beside it.
            revision: Branch, tag or commit of the repository.
            is_trainable: Whether training continues; otherwise all parameters are frozen, and the model evaluates.
            check_weights: Whether the base model's weights are compared with those the adapter was trained on.
            description: How the model's blocks are built, for a family steerscope does not know.
            token: Of the account, for a repository that is not public; the one of ``hf auth login`` if not said.
            subfolder: Name of an adapter in a folder of its own there.

        Returns:
            The steered model, in evaluation mode unless ``is_trainable``.

        Raises:
            InputError: No adapter, a damaged or incomplete file, another model or another revision.
        """
        place = hub.local_folder(folder, revision, token, subfolder)
        return loading.load_onto(
            model,
            place,
            cls,
            adapter_name=adapter_name,
            is_trainable=is_trainable,
            check_weights=check_weights,
            description=description,
        )

    def load_adapter(
        self,
        folder: str | Path,
        adapter_name: str,
        *,
        revision: str | None = None,
        is_trainable: bool = False,
        check_weights: bool = True,
        token: str | bool | None = None,
        subfolder: str | None = None,
    ) -> None:
        """Put a saved adapter beside those that are there; :meth:`set_adapter` makes it act.

        Args:
            folder: What :meth:`save_pretrained` wrote, or the name of a repository.
            adapter_name: What it is to be called here.
            revision: Branch, tag or commit of the repository.
            is_trainable: Whether it can be trained on; otherwise its parameters are frozen.
            check_weights: Whether the base model's weights are compared with those the adapter was trained on.
            token: Of the account, for a repository that is not public.
            subfolder: Name of an adapter in a folder of its own there.

        Raises:
            InputError: The name is taken; no adapter, a damaged file, another model; or a LoRA underneath the model or
                the adapter.
        """
        name = self._new_name(adapter_name)
        place = hub.local_folder(folder, revision, token, subfolder)
        found = loading.load_beside(self, place, name, is_trainable=is_trainable, check_weights=check_weights)
        self._put(found)

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

        A LoRA underneath is merged first, since the edits read what it writes; the result is the plain model.
        :func:`steerscope.steering.merging.merge` says what can be merged where.

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
            self._hooks.callback(fused_heads.put_inside(language_model(self.base_model), value))
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
            return getattr(self.base_model, name)


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
