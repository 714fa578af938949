"""Judging a pack: the same as each run under the stock wrapper, alone and token by token."""

from __future__ import annotations

import pytest
import torch

from steerscope import get_steering_model
from steerscope.experiments.engine import EditPack
from steerscope.experiments.engine.judge import judge_pack
from steerscope.experiments.tasks.supervised import SupervisedSequence
from tests.experiments.engine.test_pack import loaded_model, many, sequences


def randomised(loaded, specs):
    pack = EditPack(loaded, specs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for run in range(len(specs)):
            for parameter in pack.edits.parameters_of(run):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return pack


def test_losses_are_those_of_each_run_alone_row_by_row():
    loaded, held = loaded_model(), sequences()
    specs = [one for one in many() if one.config.family != "loreft"]
    pack = randomised(loaded, specs)
    found = judge_pack(pack, held, batch_size=7)
    for run, (one, judged) in enumerate(zip(specs, found, strict=True)):
        model = get_steering_model(loaded, one.config).eval()
        for site, edit in pack.edits.by_run[run].items():
            model.edit_at(site).load_state_dict(edit.state_dict())
        for index, row in enumerate(held):
            with torch.no_grad():
                ids = torch.tensor([row.ids])
                logits = model(input_ids=ids, prompt_lengths=torch.tensor([row.first_target])).logits[0].double()
            scores = logits[row.first_target - 1 : -1].log_softmax(-1)
            wanted = ids[0, row.first_target :]
            expected = -scores.gather(-1, wanted[:, None]).sum()
            assert float(judged.losses[index]) == pytest.approx(float(expected), rel=1e-10)
            assert bool(judged.correct[index]) == bool((scores.argmax(-1) == wanted).all())
        model.unload()


def test_choices_are_compared_with_each_other_alone():
    loaded = loaded_model()
    held = [SupervisedSequence(row.ids, len(row.ids) - 1) for row in sequences(8)]
    pack = randomised(loaded, many()[:2])
    others = [[row.ids[-1], (row.ids[-1] + 1) % 60] for row in held]
    alone, two, all_tokens = (
        judge_pack(pack, held, choices) for choices in ([row[:1] for row in others], others, None)
    )
    assert [one.accuracy for one in alone] == [1.0, 1.0]
    assert all(0 < a.accuracy < 1 and a.accuracy > b.accuracy for a, b in zip(two, all_tokens, strict=True))
    assert all(torch.equal(a.losses, b.losses) for a, b in zip(two, all_tokens, strict=True))
    # A completion of several tokens is judged by its last: the others are the same for all choices.
    longer = [SupervisedSequence((*row.ids[:-1], 5, row.ids[-1]), len(row.ids) - 1) for row in held]
    short = [SupervisedSequence(row.ids, len(row.ids) - 1) for row in longer]
    assert [j.correct.tolist() for j in judge_pack(pack, longer, others)] == [
        j.correct.tolist() for j in judge_pack(pack, short, others)
    ]
