"""Which runs speak to which claim: pairs of configurations that differ in the one thing a claim is about.

A claim is a conjunction of links, each about two methods as they are: rank 8, edits of one kind in every layer and at
every token, with a bias, started as no edit; joint adaptation with the constraint on its input, as in the code of the
authors. Every other pair that differs in one thing is a row apart, which counts neither for the claim nor against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steerscope.experiments.comparison.groups import Entry
from steerscope.experiments.training.methods import METHODS

# What both sides of every pair share: how long they were trained, on what, and what was asked.
SHARED = ("steps", "batch_size", "warmup", "train_examples", "max_length", "test_examples", "max_new_tokens", "data")
_OF_EDITS = ("family", "positions", "scale", "bias", "activation", "start")
_USUAL = {"positions": "all", "scale": "none", "activation": "silu"}
RANK = 8
# Sides have equal parameters if they differ by no more than this part.
EQUAL = 0.1


@dataclass(frozen=True)
class Pair:
    """A claim about two configurations: ``first`` at least as good as ``second``, or better where ``strict``."""

    first: Entry
    second: Entry
    strict: bool = False

    @property
    def equal_parameters(self) -> bool:
        """Whether the two train about as many numbers."""
        return abs(self.first.parameters - self.second.parameters) <= EQUAL * self.second.parameters


@dataclass(frozen=True)
class Section:
    """One of the paper's claims.

    Attributes:
        letter: As docs and issues name it.
        title: The claim.
        note: What exactly is compared.
        links: Names of the methods of each of its links, all of which have to hold.
        pairs: Finds the pairs among the runs of one task, model, test set and training, those of links and others.
    """

    letter: str
    title: str
    note: str
    links: tuple[tuple[str, str], ...]
    pairs: Callable[[Sequence[Entry]], list[Pair]]

    def link(self, pair: Pair) -> tuple[str, str] | None:
        """Return the link that a pair is, or ``None`` for one that stands apart."""
        names = name_of(pair.first), name_of(pair.second)
        return names if names in self.links else None


def name_of(entry: Entry) -> str | None:
    """Return what links call a configuration, or ``None`` for one that is not the method as it is."""
    told = entry.settings
    if entry.method == "sft":
        return entry.method
    if entry.rank != RANK or told.get("bias") is False or told.get("start") == "published":
        return None
    if any(told.get(name) not in (None, usual) for name, usual in _USUAL.items()):
        return None
    if entry.method == "joint":
        return f"joint-{told.get('constraint')}"
    return entry.method if entry.method == "lora" or plain(entry) else None


def alike(first: Entry, second: Entry, *, but: tuple[str, ...] = (), edits: bool = True) -> bool:
    """Whether two configurations share what they have to, except for the settings named."""
    names = (*SHARED, *(_OF_EDITS if edits else ()))
    return all(first.settings.get(name) == second.settings.get(name) for name in names if name not in but)


def plain(entry: Entry) -> bool:
    """Whether edits are as the method has them: one kind of site in all layers, every token."""
    method = METHODS.get(entry.method)
    kinds = {site.partition(".")[2] for site in entry.sites}
    layers = {site.partition(".")[0] for site in entry.sites}
    own = method is not None and method.kind is not None and kinds == {str(method.kind)}
    return own and len(layers) == len(entry.sites) > 1 and entry.settings.get("positions") == "all"


def _of(entries: Sequence[Entry], *methods: str) -> list[Entry]:
    return [entry for entry in entries if entry.method in methods]


def _everywhere(entries: Sequence[Entry], method: str) -> list[Entry]:
    return [entry for entry in _of(entries, method) if plain(entry)]


def sites(entries: Sequence[Entry]) -> list[Pair]:
    """(a) The order of sites, at one rank and so at equal parameters."""
    found = []
    for better, worse in (("post-block", "post-mlp"), ("post-mlp", "attn-out"), ("post-mlp", "mlp-in")):
        for first in _everywhere(entries, better):
            for second in _everywhere(entries, worse):
                if first.parameters == second.parameters and len(first.sites) == len(second.sites):
                    found += [Pair(first, second)] if alike(first, second) else []
    return found


def fine_tuning(entries: Sequence[Entry]) -> list[Pair]:
    """(b) Post-block edits of every budget against full fine-tuning."""
    return [
        Pair(first, second)
        for first in sorted(_everywhere(entries, "post-block"), key=lambda entry: entry.parameters)
        for second in _of(entries, "sft")
        if alike(first, second, edits=False)
    ]


def other_methods(entries: Sequence[Entry]) -> list[Pair]:
    """(c) Post-block edits against LoReFT and against LoRA of one rank or one size; LoReFT with one thing changed."""
    found = [
        Pair(first, second)
        for first in _everywhere(entries, "post-block")
        for second in (*_everywhere(entries, "loreft"), *_of(entries, "lora"))
        if (first.rank == second.rank or (second.method == "lora" and Pair(first, second).equal_parameters))
        and alike(first, second, edits=False)
    ]
    for one in _of(entries, "post-block", "loreft", "noreft", "post-mlp", "attn-out", "mlp-in"):
        for other in _of(entries, "post-block", "loreft", "noreft", "post-mlp", "attn-out", "mlp-in"):
            if one.rank == other.rank and one != other and _one_change(one, other):
                found.append(Pair(one, other))
    return found


def _one_change(first: Entry, second: Entry) -> bool:
    """Whether two edits differ in sites, positions, orthonormality, bias or start alone; the plainer one is first."""
    same_sites = first.sites == second.sites
    if first.method == second.method:
        if same_sites:
            for name, usual in (("positions", "all"), ("bias", True), ("start", None)):
                changed = first.settings.get(name) != second.settings.get(name)
                if changed and first.settings.get(name) == usual and alike(first, second, but=(name,)):
                    return True
            return False
        return alike(first, second) and (len(second.sites), second.sites) < (len(first.sites), first.sites)
    return (
        (first.method, second.method) == ("loreft", "noreft") and same_sites and alike(first, second, but=("family",))
    )


def nonlinear(entries: Sequence[Entry]) -> list[Pair]:
    """(d) Linear edits against nonlinear ones at the same sites."""
    return [
        Pair(first, second)
        for first in _of(entries, "post-block")
        for second in _of(entries, "nonlinear")
        if (first.sites, first.rank) == (second.sites, second.rank)
        and alike(first, second, but=("family", "activation"))
    ]


def joint(entries: Sequence[Entry]) -> list[Pair]:
    """(e) Joint adaptation against each part alone, and against LoRA of no fewer parameters."""
    return [
        Pair(first, second, strict=True)
        for first in _of(entries, "joint")
        for second in (*_everywhere(entries, "post-block"), *_of(entries, "lora"))
        if (first.rank == second.rank or _is_lora_of_its_size(first, second)) and alike(first, second, edits=False)
    ]


def _is_lora_of_its_size(first: Entry, second: Entry) -> bool:
    is_as_large = second.parameters >= first.parameters and Pair(first, second).equal_parameters
    return second.method == "lora" and is_as_large


def constraints(entries: Sequence[Entry]) -> list[Pair]:
    """(e) Joint adaptation with a constraint against joint adaptation without."""
    return [
        Pair(first, second, strict=True)
        for first in _of(entries, "joint")
        for second in _of(entries, "joint")
        if first.rank == second.rank
        and (first.settings.get("constraint") != "none" and second.settings.get("constraint") == "none")
        and alike(first, second)
    ]


SECTIONS = (
    Section(
        "a",
        "Steering all layers at equal parameters: post-block >= post-MLP >= attention output and MLP input",
        "Linear edits of one rank in every layer.",
        (("post-block", "post-mlp"), ("post-mlp", "attn-out"), ("post-mlp", "mlp-in")),
        sites,
    ),
    Section(
        "b",
        "Post-block steering comes near full fine-tuning at a small part of its parameters",
        "Near means that it loses less than one point, the margin of the rule; the paper's abstract speaks of 0.2% to "
        "0.9%. The claim is about rank 8; other budgets stand apart.",
        (("post-block", "sft"),),
        fine_tuning,
    ),
    Section(
        "c",
        "Post-block steering is at least as good as LoReFT and LoRA",
        "At the same rank, so against LoRA not at the same parameters: rows apart compare it with LoRA of equal "
        "parameters where there are runs. Other rows apart change one thing: sites, positions, orthonormal rows "
        "(`loreft` against `noreft`), the bias or the start. LoReFT starts as no edit (W = R), or from the random W of "
        "its authors where it is called published.",
        (("post-block", "loreft"), ("post-block", "lora")),
        other_methods,
    ),
    Section(
        "d",
        "Linear edits are at least as good as nonlinear ones",
        "The same sites, rank and positions. (The authors' earlier post has it so for models of 1B, and the other way "
        "round for 4B.)",
        (("post-block", "nonlinear"),),
        nonlinear,
    ),
    Section(
        "e",
        "Joint adaptation is better than each of its parts",
        "The same rank, so the joint model has the parameters of both parts; rows apart compare it with LoRA of no "
        "fewer parameters than it has. The claim is about the constraint on the input, as in the authors' code; other "
        "constraints stand apart.",
        (("joint-input", "post-block"), ("joint-input", "lora")),
        joint,
    ),
    Section(
        "e, constraint",
        "The orthogonality constraint helps joint adaptation",
        "Better than joint adaptation without one.",
        (("joint-input", "joint-none"),),
        constraints,
    ),
)


def trained_words(entry: Entry) -> str:
    """Return a configuration in a few words."""
    method = METHODS.get(entry.method)
    parts = [entry.method]
    if entry.rank is not None:
        parts.append(f"r{entry.rank}")
    if method is not None and method.edits and not plain(entry):
        parts.append(f"at {entry.site_words}")
    return " ".join([*parts, *entry.setting_words])
