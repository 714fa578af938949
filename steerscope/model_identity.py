"""Which model a result is about: what every result that is kept says of its model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a result is about: its files, its size and how it was computed with.

    Results are compared by it, so its hash is exact. Whether an adapter fits a model, in whatever data type and from
    whatever file, is another question, which :class:`steerscope.steering.identity.BaseIdentity` answers.

    Attributes:
        name: As the user named it.
        revision: Commit on the hub, where there is one.
        sha256: Hash of the weight files (of the parameters for a model that came from no file).
        layers: Number of blocks.
        quantised: What happened to the weights, in words, or ``None``.
        layout: Name of the block layout.
        d_model: Width of the residual stream.
        n_params: Number of parameters.
        dtype: Data type of the computation.
        setup: Hash of what else decides its outputs: configuration, tokenizer and code beside the weights, or the
            commit on the hub. Empty for a GGUF file, whose own hash covers them, for a model made in memory, and in
            files of before.
    """

    name: str
    revision: str | None
    sha256: str
    layers: int
    quantised: str | None
    layout: str
    d_model: int
    n_params: int
    dtype: str
    setup: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)
