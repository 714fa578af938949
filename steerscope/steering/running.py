"""The part of :class:`SteeringModel` that runs it: passes, generation, and both without the edits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor

from steerscope.errors import InputError
from steerscope.models.compat import checkpoint_activations
from steerscope.models.virtual_tokens import require_no_tokens_around
from steerscope.models.wrappers import decoder_of, is_peft, language_model
from steerscope.steering.named import NamedAdapters
from steerscope.steering.passes import Told, passes_on


class SteeredRuns(NamedAdapters):
    """A model whose passes edit the tokens that its positions name."""

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
        if isinstance(assistant, SteeredRuns):  # it is not asked to generate by itself, from a prompt of its own
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
