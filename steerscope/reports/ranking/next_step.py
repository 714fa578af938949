"""What to type next: a configuration, a training and a search, and whether the edit can become part of the weights."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from steerscope.analysis.results import Ranking
from steerscope.experiments.tasks import task_names
from steerscope.experiments.tasks.chat import CHAT
from steerscope.reports.ranking.candidates import Candidate
from steerscope.reports.ranking.verdict import Verdict, recommends
from steerscope.reports.vocabulary import clean
from steerscope.site_kinds import Role, SiteKind

_METHODS = {"linear": "post-block", "vector": "vector"}
# Options of the command that ranked which say what the model and the data are.
_KEPT = ("--task", "--data", "--data-dir", "--revision")


@dataclass(frozen=True)
class NextStep:
    """Lines to copy; ``config`` and ``train`` are empty where nothing is recommended."""

    config: str
    train: str
    search: str
    merging: str

    @property
    def lines(self) -> list[str]:
        """The lines that are there."""
        return [line for line in (self.config, self.train, self.search) if line]


def next_step(ranking: Ranking) -> NextStep | None:
    """Return what to type next; ``None`` without sites."""
    if not ranking.sites:
        return None
    subject = _subject(ranking)
    search = f"steerscope search {subject} --budget 30 --out search"
    if not recommends(ranking):
        return NextStep("", "", search, "")
    chosen = Verdict(ranking).cheapest
    recommended = ranking.recommended()
    site, family = recommended.name, recommended.family
    rank = ranking.settings.get("rank")
    has_rank = family == "linear" and isinstance(rank, int)
    options = f'family="{clean(family, 24)}"' + (f", rank={rank}" if has_rank else "")
    config = f'SteeringConfig(sites=("{clean(site, 40)}",), {options})'
    train = ""
    if family in _METHODS:
        how = f"--method {_METHODS[family]} --site {shlex.quote(clean(site, 40))}" + (
            f" --rank {rank}" if has_rank else ""
        )
        train = f"steerscope train {subject} {how} --out run"
    return NextStep(config, train, search, merge_sentence(ranking, chosen))


def _subject(ranking: Ranking) -> str:
    """Return model and data as the command line names them."""
    try:
        typed = shlex.split(clean(ranking.settings.get("command") or ""))
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
        task = clean(ranking.task, 80)
        is_chat |= task.endswith(CHAT)
        task = task.removesuffix(CHAT)
        kept |= {"--task": task} if task in task_names() else {"--data": "FILE.jsonl"}
    words = [clean(ranking.model.get("name") or "MODEL", 200)]
    words += [word for option in _KEPT if option in kept for word in (option, kept[option])]
    words += ["--chat-template"] if is_chat else []
    words += ["--trust-remote-code"] if "--trust-remote-code" in typed else []
    return shlex.join(words)


def merge_sentence(ranking: Ranking, row: Candidate) -> str:
    """Say where the edit goes, and whether the weights can hold it, so that it costs nothing when the model runs.

    Args:
        ranking: The ranking, which says how the model is laid out.
        row: The candidate to train at.

    Returns:
        The end of a sentence.
    """
    kind, family = row.kinds[0], row.site.family
    why = why_not_merged(kind, family, str(ranking.model.get("layout", "")))
    if why is None:
        return f"an edit at {row.label}."
    if why:
        return f"an edit at {row.label} that stays an adapter ({why})."
    return f"an edit at {row.label}, which can be merged into the weights (merge_and_unload(make_biases=True))."


def why_not_merged(kind: str, family: str, layout: str) -> str | None:
    """Return why the weights cannot hold an edit: an empty text if they can, ``None`` if it is not known.

    Args:
        kind: Kind of site.
        family: ``linear`` or ``vector``.
        layout: Name of the model's layout.

    Returns:
        A reason, an empty string, or ``None``.
    """
    if kind not in set(SiteKind) or family not in _METHODS:
        return None
    facts = SiteKind(kind).facts
    if facts.read_by is not None:
        return ""
    if not facts.written_by:
        return "the embeddings, which it adds to, often make the logits too"
    if facts.role is Role.STREAM and family != "vector":
        return "an edit of the stream that reads it acts past every weight of the block"
    if "writes" in layout:
        return "a norm stands behind the weights that write there"
    return ""
