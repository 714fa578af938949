"""How many output directions are taken, and whether they span the outputs."""

from __future__ import annotations

import pytest
import torch

from steerscope.analysis.capture.outputs import MOST_PROBES, PROBES_OF_TEXT, make_probes, probes_to_take
from steerscope.analysis.data.encoding import Encoded, OutputMode, TokenSequence
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.options import RankOptions
from tests.analysis.test_invariance import examples_of, loaded


def of_choices(*counts: int, mode: OutputMode = OutputMode.CHOICE_LIKELIHOODS) -> Encoded:
    sequences = tuple(
        TokenSequence((1, 2, 3), example, choice, 2)
        for example, count in enumerate(counts)
        for choice in range(count or 1)
    )
    return Encoded(mode, sequences, (), (0,) * len(counts), counts)


@pytest.mark.parametrize(
    ("counts", "asked", "taken", "spans"),
    [
        ((10, 10), None, 9, True),
        ((2, 5, 3), None, 4, True),  # the most choices that an example has
        ((2,), None, 1, True),
        ((MOST_PROBES + 1,), None, MOST_PROBES, True),
        ((MOST_PROBES + 2,), None, MOST_PROBES, False),
        ((10,), 4, 4, False),
        ((3,), 4, 2, True),
    ],
)
def test_as_many_probes_as_span_the_outputs(counts, asked, taken, spans):
    probes = make_probes(of_choices(*counts), asked, 30, 0, torch.float64)
    assert (probes.num_probes, probes.spans) == (taken, spans)
    assert probes.num_backward == taken + (not spans)


def test_without_choices_no_number_spans():
    encoded = of_choices(0, 0, mode=OutputMode.COMPLETION)
    assert probes_to_take(encoded, None) == PROBES_OF_TEXT
    assert probes_to_take(encoded, 7) == 7
    assert not make_probes(encoded, None, 30, 0, torch.float64).spans


def test_a_ranking_says_how_many_it_took():
    model, examples = loaded("llama"), examples_of(OutputMode.CHOICE_LOGITS, 24)
    found = rank_sites(model, examples, RankOptions(max_sites=1, num_groups=2, kinds=("mlp_out",)))
    most = max(len(example.choices) for example in examples)
    assert (found.outputs.n_probes, found.outputs.n_backward, found.outputs.spans) == (
        most - 1,
        most - 1,
        True,
    )
