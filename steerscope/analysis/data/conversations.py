"""Conversations: messages with roles, and the prompt that a model's chat template makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerscope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Pairs of role and text.
Messages = tuple[tuple[str, str], ...]
_FORMAT = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def conversation(messages: Any) -> tuple[Messages, str]:
    """Return what was said before the last message, and the last one, which the model is to write.

    Args:
        messages: Dictionaries with ``role`` and ``content``; the last one is the assistant's.

    Returns:
        Pairs of role and text, at least one; and a text.

    Raises:
        InputError: They are something else.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError(f"messages is {messages!r:.80}; expected a list such as {_FORMAT}.")
    said = [_message(one) for one in messages]
    role, answer = said[-1]
    if role != "assistant" or len(said) < 2:
        raise InputError(
            f"the last of {len(said)} messages is by {role!r}; expected one by assistant, after a question. Write "
            f"{_FORMAT}."
        )
    return tuple(said[:-1]), answer


def _message(one: Any) -> tuple[str, str]:
    content = one.get("content") if isinstance(one, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str) or not content or not isinstance(one.get("role"), str):
        raise InputError(f"a message is {one!r:.80}; expected a role and a text as content. Write {_FORMAT}.")
    return one["role"], content


def written_out(messages: Messages) -> str:
    """Return a conversation as text, whatever the model: what tells questions apart, and cuts a file into parts."""
    return "\n".join(f"{role}: {text}" for role, text in messages)


def templated(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the prompt that a model's chat template makes of a conversation, up to where the answer begins.

    Args:
        messages: Pairs of role and text.
        tokenizer: The model's, with a chat template.

    Returns:
        Text with its special tokens spelled out; it is tokenised without others before it.

    Raises:
        InputError: The tokenizer has no chat template, or the template refuses these roles.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer of this model has no chat template; expected an instruction-tuned model. Leave out "
            "[[chat_template]], or set tokenizer.chat_template."
        )
    asked = [{"role": role, "content": text} for role, text in messages]
    try:
        return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates raise what their authors chose
        roles = ", ".join(role for role, _ in messages)
        raise InputError(
            f"the chat template of this model refuses messages by {roles} ({error}). Use roles that it knows."
        ) from error
