"""Lines that a reader may copy: model and data as the command line names them."""

from __future__ import annotations

import shlex

from steerscope.experiments.tasks import task_names
from steerscope.experiments.tasks.chat import CHAT
from steerscope.reports.vocabulary import clean

# Options that say what the model and the data are.
_KEPT = ("--task", "--data", "--data-dir", "--revision")


def subject_words(command: object, model: object, task: object) -> str:
    """Return model and data as the next command has to name them.

    Args:
        command: What the user typed for the result at hand, if that is known.
        model: Name of the model.
        task: Name of the task or file.

    Returns:
        A part of a command line, quoted for a shell.
    """
    try:
        typed = shlex.split(clean(command or ""))
    except ValueError:  # what a stranger's file holds need be no command
        typed = []
    kept: dict[str, str] = {}
    for option in _KEPT:
        for i, word in enumerate(typed):
            name, is_joined, value = word.partition("=")
            if name == option and (is_joined or i + 1 < len(typed)):
                kept[option] = value if is_joined else typed[i + 1]
    is_chat = "--chat-template" in typed
    if not kept.keys() & {"--task", "--data"}:
        known = clean(task, 80)
        is_chat |= known.endswith(CHAT)
        known = known.removesuffix(CHAT)
        kept |= {"--task": known} if known in task_names() else {"--data": "FILE.jsonl"}
    words = [clean(model or "MODEL", 200)]
    words += [word for option in _KEPT if option in kept for word in (option, kept[option])]
    words += ["--chat-template"] if is_chat else []
    words += ["--trust-remote-code"] if "--trust-remote-code" in typed else []
    return shlex.join(words)


def train_line(subject: str, site: str, family: str, rank: int | None) -> str:
    """Return the command that trains one edit; empty for a family that ``train`` has no method of.

    Args:
        subject: Model and data, as :func:`subject_words` writes them.
        site: The hook point.
        family: ``linear`` or ``vector``.
        rank: Rank of a linear edit, or ``None`` for the default.

    Returns:
        A command line, or an empty string.
    """
    if family not in METHODS:
        return ""
    how = f" --rank {rank}" if family == "linear" and isinstance(rank, int) else ""
    return f"steerscope train {subject} --method {METHODS[family]} --site {shlex.quote(clean(site, 40))}{how} --out run"


METHODS = {"linear": "post-block", "vector": "vector"}
