"""What to type next: a configuration, a training and a search, and whether the edit can become part of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from steerscope.analysis.results import Ranking
from steerscope.reports.ranking.candidates import Candidate
from steerscope.reports.ranking.verdict import Verdict, recommends
from steerscope.reports.typed import METHODS, subject_words, train_line
from steerscope.reports.vocabulary import clean
from steerscope.site_kinds import Role, SiteKind


@dataclass(frozen=True)
class NextStep:
    """Lines to copy; ``config`` and ``train`` are empty where nothing is recommended.

    Attributes:
        is_open: Whether several places may be the best one: training at several comes first.
    """

    config: str
    train: str
    search: str
    merging: str
    is_open: bool = False

    @property
    def lines(self) -> list[str]:
        """The lines that are there, in the order to think of them."""
        own = [self.search, self.config, self.train] if self.is_open else [self.config, self.train, self.search]
        return [line for line in own if line]


def next_step(ranking: Ranking) -> NextStep | None:
    """Return what to type next; ``None`` without sites."""
    if not ranking.sites:
        return None
    subject = subject_words(ranking.settings.command, ranking.model.name, ranking.task)
    search = f"steerscope search {subject} --budget 30 --out search"
    if not recommends(ranking):
        return NextStep("", "", search, "")
    verdict = Verdict(ranking)
    chosen = verdict.cheapest
    recommended = ranking.recommended()
    site, family = recommended.name, recommended.family
    rank = ranking.settings.rank if family == "linear" else None
    options = f'family="{clean(family, 24)}"' + ("" if rank is None else f", rank={rank}")
    config = f'SteeringConfig(sites=("{clean(site, 40)}",), {options})'
    train = train_line(subject, site, family, rank)
    merging, is_open = merge_sentence(ranking, chosen), len(verdict.equal) == 1 and bool(verdict.undetermined)
    if is_open:
        likely = f"the {len(verdict.undetermined) + 1:,} that may be the best"
        merging = f"a search, which trains at the likely ones of {likely}; or, one of them, {merging}"
    return NextStep(config, train, search, merging, is_open)


def merge_sentence(ranking: Ranking, row: Candidate) -> str:
    """Say where the edit goes, and whether the weights can hold it, so that it costs nothing when the model runs.

    Args:
        ranking: The ranking, which says how the model is laid out.
        row: The candidate to train at.

    Returns:
        The end of a sentence.
    """
    kind, family = row.kinds[0], row.site.family
    why = why_not_merged(kind, family, ranking.model.layout)
    if why is None:
        return f"an edit at {row.label}."
    if why:
        return f"an edit at {row.label} that stays an adapter ({why})."
    merged = f"an edit at {row.label}, which can be merged into the weights (merge_and_unload(make_biases=True))"
    if row.site.served_as == "lora":
        return f"{merged}; trained with bias=False it is exactly a LoRA, which vLLM and SGLang serve (export_lora)."
    return f"{merged}."


def why_not_merged(kind: str, family: str, layout: str) -> str | None:
    """Return why the weights cannot hold an edit: an empty text if they can, ``None`` if it is not known.

    Args:
        kind: Kind of site.
        family: ``linear`` or ``vector``.
        layout: Name of the model's layout.

    Returns:
        A reason, an empty string, or ``None``.
    """
    if kind not in set(SiteKind) or family not in METHODS:
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
