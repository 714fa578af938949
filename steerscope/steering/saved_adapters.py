"""The part of :class:`SteeringModel` that keeps adapters: checkpoints, folders, the hub, and back on a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from steerscope.errors import InputError
from steerscope.folders import as_folder
from steerscope.models.description import BlockDescription
from steerscope.models.load import LoadedModel
from steerscope.steering import (
    beneath,
    hub,
    loading,
    saving,
)
from steerscope.steering.adapters import DEFAULT, Adapter
from steerscope.steering.identity import BaseIdentity
from steerscope.steering.named import NamedAdapters


class SavedAdapters(NamedAdapters):
    """A model whose adapters are saved and loaded; this alone decides what a checkpoint holds."""

    _identity: BaseIdentity | None

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
    ) -> Self:
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
