"""Sketched features against sums over tokens written out here, from the same projections."""

from __future__ import annotations

import math
import zlib

import pytest
import torch

from steerscope.analysis.capture import sketched
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.rounded import wide_feature
from steerscope.analysis.capture.sketched import SketchedParts
from steerscope.analysis.capture.stored import BatchRows
from steerscope.equivalence import products
from steerscope.equivalence.tangents import random_projection
from steerscope.models.load import wrap_model
from steerscope.sites import parse_site
from tests.tiny import tiny_model, tiny_tokenizer

PLAN = SketchPlan(exact=False, blocks=4, size=3, weight_size=5)
WIDTH, SEED = 24, 3
ONE, TWO = parse_site("0.attn_out"), parse_site("1.mlp_out")
BOTH = parse_site("0.resid_mid")  # its edits are added where those of ONE are
EXAMPLES, TOKENS = [4, 1, 4], 5


def projection(role: object, rows: int, blocks: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(repr((SEED, role, WIDTH)).encode()))
    return random_projection(rows, WIDTH, blocks=blocks, generator=generator).float()


def parts_of(scales: dict) -> tuple[SketchedParts, BatchRows]:
    site_map = wrap_model(tiny_model("llama"), tiny_tokenizer()).site_map
    written_at = {TWO: [TWO], ONE: [ONE, BOTH]}
    groups = [(block.index, group) for block in site_map.blocks for group, _ in block.groups()]
    made = SketchedParts(groups, written_at, scales, PLAN, (6, 2), torch.float32, torch.device("cpu"), SEED)
    examples, local = torch.unique(torch.tensor(EXAMPLES), return_inverse=True)
    mask = torch.ones(3, TOKENS, dtype=torch.long)
    mask[1, 3:] = 0
    return made, BatchRows(mask, examples, local)


@pytest.mark.parametrize("at_once", [1, 2**19])
def test_features_are_projected_sums_over_the_real_tokens_of_an_example(monkeypatch, at_once):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(sketched, "_AT_ONCE", {"cpu": at_once})
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(3, TOKENS, WIDTH, generator=generator)  # noqa: E731
    sites = (ONE, BOTH, TWO)
    scales = {site: torch.rand(WIDTH, generator=generator) + 0.5 for site in sites}
    parts, rows = parts_of(scales)
    reads, grads, map_read, map_grads = {site: draw() for site in sites}, draw(), draw(), [draw(), draw()]
    parts.start(rows)
    for site, read in reads.items():
        parts.read_site(site, read)
    parts.read_maps(0, "attn_in", map_read)
    for slot, factor in enumerate((1.0, -2.0)):
        parts.start_slot(slot)
        parts.grad_of_site(ONE, factor * grads)  # no derivative comes to TWO
        for path, grad in zip(("q", "k"), map_grads, strict=True):
            parts.grad_of_map(0, "attn_in", path, factor * grad)
        parts.finish_slot()
    parts.finish()

    rows_of = PLAN.blocks * PLAN.size
    left, right = (projection(role, rows_of, PLAN.blocks) for role in ("site write", "site read"))
    real = rows.mask[..., None].float()
    for slot, factor in enumerate((1.0, -2.0)):
        for example in (1, 4):
            here = [row for row, owner in enumerate(EXAMPLES) if owner == example]
            grad = (factor * grads * real)[here]
            for site in (ONE, BOTH):
                whole = torch.einsum("bto,bti->oi", grad, (reads[site] / scales[site])[here])
                blocks = [
                    left[part] @ whole @ right[part].T
                    for part in (slice(n * PLAN.size, (n + 1) * PLAN.size) for n in range(PLAN.blocks))
                ]
                near(parts.linear[site][example, slot], torch.stack(blocks).flatten() / math.sqrt(PLAN.blocks))
            near(parts.vector[ONE][example, slot], left @ grad.sum((0, 1)) / math.sqrt(PLAN.blocks))
            assert not wide_feature(parts.linear[TWO][example, slot]).any()
            assert not wide_feature(parts.vector[TWO][example, slot]).any()
            read = (map_read * real)[here] @ projection((0, "attn_in"), PLAN.weight_size, 1).T
            expected = sum(
                torch.einsum("bto,bti->oi", factor * one[here] @ projection(path, PLAN.weight_size, 1).T, read)
                for path, one in zip(("q", "k"), map_grads, strict=True)
            )
            near(parts.weights["all"][example, slot], expected.flatten())


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that rounding to eight bits is all that was changed."""
    assert (wide_feature(found) - expected).abs().max() <= expected.abs().max() / 250
    assert expected.abs().max() > 0.1
