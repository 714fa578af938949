"""A made-up search, for tests of its page and its rows."""

from __future__ import annotations

from steerscope.experiments.searching import result as searching
from steerscope.experiments.searching.options import SearchOptions
from steerscope.experiments.searching.result import Contender, SearchResult, SearchSettings
from steerscope.records import copied
from tests.identities import identity


def searched(accuracy: float = 0.61, **changes: object) -> SearchResult:
    """Return a search that chose among four sites and a set, with two references."""
    names = ["9.resid_post", "12.mlp_out", "3.attn_out", "20.mlp_in", "9.resid_post+12.mlp_out"]
    contenders = tuple(
        Contender(name, rate, steps, 2.0 + 0.1 * i - steps / 400, 1.8 + 0.1 * i if steps == 120 else None, 0.5, 0.3 * i)
        for i, name in enumerate(names)
        for rate, steps in ((1e-2, 120 if i < 2 else 40), (3e-2, 14))
    )
    every = "+".join(f"{layer}.resid_post" for layer in range(30))
    fields: dict[str, object] = {
        "model": identity(name="smollm2-135m", quantised="Weights were stored in 4 bits."),
        "task": "listops",
        "options": copied(SearchSettings, SearchOptions(steps=120, rank=8)),
        "best": searching.Tested("9.resid_post", 1e-2, True, 1.79, accuracy, 9216, 300.0),
        "before": searching.Untrained(2.2, 0.2, 0.2, recalibrated_loss=2.15, recalibrated_accuracy=0.21, num_test=512),
        "contenders": contenders,
        "references": (searching.Tested(every, 1e-3, True, 1.85, 0.58, 276480, 500.0),
                       searching.Tested("lora", 3e-4, False, 1.9, 0.4, 460800, 600.0)),
        "seconds": {"ranking": 60.0, "search": 900.0, "references": 1000.0},
        "adapter": "found/adapter",
        "versions": {"torch": "2.13"},
        "command": "steerscope search smollm2-135m --task listops --out found",
    }  # fmt: skip
    return SearchResult(**(fields | changes))  # type: ignore[arg-type]
