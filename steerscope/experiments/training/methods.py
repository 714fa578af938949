"""The methods of ``steerscope train``: one table, from a name to what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steerscope.errors import InputError, did_you_mean, same_name
from steerscope.sites import SiteKind


class Trains(StrEnum):
    """What a method trains, each built in its own way by :mod:`steerscope.experiments.training.trainee`."""

    NOTHING = "nothing"
    EDITS = "edits"
    LOFIT = "lofit"
    LORA = "lora"
    JOINT = "joint"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: As the command line names it.
        trains: What it trains.
        words: What it is, in one line.
        start: Place of its own learning rate on the half-decade grid, ``10^(start / 2)``; also where a search begins.
        family: Family of its edits, if it has any.
        kind: Kind of site it edits, in all layers, unless sites are named.
    """

    name: str
    trains: Trains
    words: str
    start: int
    family: str | None = None
    kind: SiteKind | None = None

    @property
    def edits(self) -> bool:
        """Whether it edits activations."""
        return self.family is not None


def _edits(name: str, words: str, family: str, kind: SiteKind = SiteKind.RESID_POST, start: int = -6) -> Method:
    return Method(name, Trains.EDITS, words, start, family, kind)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _edits("post-block", "linear edits of the stream after every block", "linear"),
        _edits("post-mlp", "linear edits of what every MLP adds to the stream", "linear", SiteKind.MLP_OUT),
        _edits("attn-out", "linear edits of what every attention adds to the stream", "linear", SiteKind.ATTN_OUT),
        _edits("mlp-in", "linear edits of what every MLP alone receives", "linear", SiteKind.MLP_IN),
        _edits("vector", "a fixed vector after every block", "vector", start=-4),
        _edits("nonlinear", "low-rank edits with an activation inside, after every block", "nonlinear"),
        _edits("loreft", "LoReFT after every block (Wu et al. 2024)", "loreft"),
        _edits("direft", "DiReFT after every block (Wu et al. 2024)", "direft"),
        _edits("noreft", "LoReFT without orthonormal rows, after every block", "noreft"),
        Method(
            "lofit",
            Trains.LOFIT,
            "LoFiT: scales choose heads, offsets at these are kept (Yin et al. 2024)",
            -4,
            "lofit_offset",
            SiteKind.ATTN_HEADS,
        ),
        Method("lora", Trains.LORA, "LoRA (PEFT) of the linear maps of all blocks", -6),
        Method("sft", Trains.WEIGHTS, "full fine-tuning: every parameter of the model", -9),
        Method("bitfit", Trains.WEIGHTS, "BitFit: biases alone (Ben Zaken et al. 2022)", -6),
        Method(
            "joint",
            Trains.JOINT,
            "LoRA and linear edits after every block, together",
            -6,
            "linear",
            SiteKind.RESID_POST,
        ),
        Method("none", Trains.NOTHING, "nothing: the model as it is", 0),
    )
}


# Families of edits that are called otherwise as methods.
_FAMILIES = {"linear": "post-block"}


def method_name(name: str) -> str:
    """Return the method that a text names: in other capitals, or by the family of its edits; else the text itself.

    >>> method_name("LoRA"), method_name("linear")
    ('lora', 'post-block')
    """
    return _FAMILIES.get(found := same_name(name, [*METHODS, *_FAMILIES]), found)


def get_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        InputError: There is none.
    """
    name = method_name(name)
    if name not in METHODS:
        raise InputError(
            f"there is no method {name!r}; expected one of {', '.join(METHODS)}."
            f"{did_you_mean(str(name), list(METHODS))}"
        )
    return METHODS[name]
