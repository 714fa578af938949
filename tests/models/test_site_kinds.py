"""The table of site kinds: complete, and what is derived from it is what the block equations say."""

import pytest

from steerscope.models import find_sites
from steerscope.models.blocks import width_of
from steerscope.reports.figure_style import look
from steerscope.site_kinds import (
    SITE_KINDS,
    Branch,
    Maps,
    Place,
    Role,
    SiteKind,
    kind_read_by,
    kinds_adding_at,
    kinds_written_by_branches,
    stream_behind,
)
from steerscope.sites import Site
from tests.tiny import tiny_model

PRE, HEADS, ATTN_OUT, MID, MLP_IN, HIDDEN, MLP_OUT, POST = SiteKind

# Written down by hand, kind by kind, from the equations of docs/sites.md.
ADDS_AT = {
    PRE: (PRE,),
    HEADS: (HEADS,),
    ATTN_OUT: (ATTN_OUT, MID),
    MLP_IN: (MLP_IN,),
    HIDDEN: (HIDDEN,),
    MLP_OUT: (MLP_OUT, POST),
}
WRITTEN_THROUGH = {ATTN_OUT: (HEADS,), MID: (HEADS,), MLP_OUT: (HIDDEN,), POST: (HEADS, HIDDEN)}
BEHIND = {PRE: PRE, HEADS: HEADS, ATTN_OUT: MID, MID: MID, MLP_IN: MLP_IN, HIDDEN: HIDDEN, MLP_OUT: POST, POST: POST}
STREAM = (PRE, MID, POST)


def test_every_kind_has_an_entry_with_a_meaning_of_its_own():
    assert list(SITE_KINDS) == list(SiteKind)
    assert [kind.order for kind in SITE_KINDS] == list(range(8))
    assert len({facts.meaning for facts in SITE_KINDS.values()}) == len(SiteKind)
    # Unknown kinds share one look in figures, so every known one needs its own.
    assert len({look(kind) for kind in (*SiteKind, "unknown")}) == len(SiteKind) + 1


def test_where_edits_are_added():
    assert {kind: found for kind in SiteKind if (found := kinds_adding_at(kind))} == ADDS_AT
    for write, kinds in ADDS_AT.items():
        assert [Site(2, kind).write for kind in kinds] == [Site(2, write)] * len(kinds)


def test_what_writes_and_reads_there():
    assert set(kinds_written_by_branches()) == {ATTN_OUT, MID, MLP_OUT, POST}
    through = {k: tuple(kind_read_by(b, Maps.WRITE) for b in k.facts.written_by) for k in kinds_written_by_branches()}
    assert through == WRITTEN_THROUGH
    assert {kind for kind in SiteKind if kind.facts.read_by} == {HEADS, MLP_IN, HIDDEN}
    assert kind_read_by(Branch.MLP, Maps.READS) is MLP_IN
    with pytest.raises(KeyError, match="no kind of site"):
        kind_read_by(Branch.ATTENTION, Maps.READS)


def test_the_stream():
    assert tuple(kind for kind in SiteKind if kind.facts.role is Role.STREAM) == STREAM
    assert {kind: stream_behind(kind, tuple(SiteKind)) for kind in SiteKind} == BEHIND
    parallel = tuple(kind for kind in SiteKind if kind is not MID)
    assert {kind: stream_behind(kind, parallel) for kind in parallel} == {
        kind: POST if kind is ATTN_OUT else BEHIND[kind] for kind in parallel
    }


def test_where_a_kind_is():
    assert [kind for kind in SiteKind if kind.facts.place is not Place.INSIDE] == [PRE, POST]
    assert [kind for kind in SiteKind if kind.facts.is_first_block_only] == [PRE]
    assert [kind for kind in SiteKind if kind.facts.is_sequential_only] == [MID]
    assert [kind for kind in SiteKind if kind.facts.has_heads] == [HEADS]


def test_sites_sort_in_the_order_of_computation():
    names = ["1.resid_post", "0.mlp_in", "0.attn_heads.3", "1.attn_out", "0.attn_heads", "0.attn_heads.1"]
    sites = sorted((Site(int(n[0]), SiteKind(n[2:].partition(".")[0]), *map(int, n.split(".")[2:])) for n in names),
                   key=lambda site: site.order)  # fmt: skip
    assert list(map(str, sites)) == [
        "0.attn_heads",
        "0.attn_heads.1",
        "0.attn_heads.3",
        "0.mlp_in",
        "1.attn_out",
        "1.resid_post",
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_the_parts_of_a_block_by_the_words_of_the_table(family):
    block = find_sites(tiny_model(family)).blocks[1]
    assert block.maps(Branch.ATTENTION, Maps.READS) == block.attn_reads
    assert block.maps(Branch.ATTENTION, Maps.WRITE) == (block.attn_write,)
    assert block.maps(Branch.MLP, Maps.READS) == block.mlp_reads
    assert block.maps(Branch.MLP, Maps.WRITE) == (block.mlp_write,)
    readers = [block.reader(branch, maps) for branch in Branch for maps in Maps]
    assert readers == [block.attn, block.attn_write, block.mlp_in, block.mlp_write]
    normed = family == "gemma2"
    assert block.writer(Branch.ATTENTION) is (block.attn_post_norm if normed else block.attn_write)
    assert block.writer(Branch.MLP) is (block.mlp_post_norm if normed else block.mlp_write)
    widths = {kind: width_of(block, kind, 16) for kind in SiteKind}
    assert widths == dict.fromkeys(SiteKind, 16) | {HEADS: 24 if family == "gemma2" else 16, HIDDEN: 20}
