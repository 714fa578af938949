"""What a training does inside a block, and what edits reach of it: studies/trained_reach.py."""

from __future__ import annotations

import json

import pytest
import torch

from steerscope.equivalence.oracles import reduced_rank_map
from steerscope.errors import InputError
from steerscope.models.hooks import reading
from steerscope.models.load import wrap_model
from studies.texts import lines_of, windows_of
from studies.trained_reach import (
    ALL,
    Reader,
    run,
    shifts_and_reads,
    summary,
    top_directions,
    trained_calls,
    trained_update,
)
from tests.byte_models import byte_model, byte_tokenizer


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "gpt_neox"])
def loaded(request):
    return wrap_model(byte_model(request.param), byte_tokenizer())


def test_a_map_that_makes_the_shift_leaves_nothing_and_noise_leaves_everything():
    torch.manual_seed(0)
    x, noise = torch.randn(800, 12), torch.randn(800, 5)
    fitted = torch.arange(800) % 2 == 0
    assert Reader(x, fitted).left_over(x @ torch.randn(12, 5) + 3.0) < 1e-8
    assert Reader(x, fitted).left_over(noise) > 0.98
    made = x @ torch.randn(12, 5)
    assert Reader(x, fitted).left_over(made + noise * made.std() / noise.std()) == pytest.approx(0.5, abs=0.06)


def test_a_cut_map_is_the_best_of_its_rank():
    torch.manual_seed(0)
    x = torch.randn(100, 6, dtype=torch.float64)
    y = torch.randn(100, 4, dtype=torch.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    whole = torch.linalg.pinv(x) @ y
    directions = top_directions(x @ whole, 2)
    torch.testing.assert_close(whole @ directions @ directions.T, reduced_rank_map(x, y, 2))
    fitted = torch.arange(100) % 2 == 0
    reader = Reader(torch.cat((x, x)), torch.cat((~fitted, fitted)))  # tested on what it is fitted on
    left = [reader.left_over(torch.cat((y, y)), rank) for rank in (1, 2, None)]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[2] + 0.01


def test_the_shift_is_that_of_new_weights_on_the_trained_stream(loaded):
    """Against the model run as a whole: trained everywhere, and trained everywhere but in the block."""
    torch.manual_seed(0)
    from steerscope.analysis.theory.common import weight_names
    from steerscope.models.changed_weights import with_update

    named = dict(loaded.model.named_parameters())
    update = {name: 0.05 * torch.randn_like(named[name]) for name in weight_names(loaded).values()}
    before = {name: tensor.clone() for name, tensor in named.items()}
    ids = torch.randint(0, 200, (3, 7))
    shifts, reads = shifts_and_reads(loaded, update, 1, trained_calls(loaded, update, [0, 1], ids)[1])
    assert all(torch.equal(tensor, named[name]) for name, tensor in before.items())
    mine = {name for (layer, _), name in weight_names(loaded).items() if layer == 1}

    def stream(part):
        with with_update(loaded, part), torch.no_grad(), reading(loaded, ["1.resid_post"]) as found:
            loaded.model(input_ids=ids)
        return found["1.resid_post"]

    below = {name: change for name, change in update.items() if name not in mine}
    torch.testing.assert_close(reads["block"], stream(below), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shifts[ALL], stream(update) - stream(below), rtol=1e-3, atol=1e-5)
    assert set(shifts) == {ALL} | {path for (layer, path) in weight_names(loaded) if layer == 1}
    assert not torch.allclose(shifts[ALL], sum(own for name, own in shifts.items() if name != ALL), atol=1e-6)


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_an_update_is_what_training_changed(loaded, method):
    from steerscope.analysis.theory.common import weight_names
    from steerscope.experiments.engine.spec import Schedule
    from steerscope.experiments.groundwork.split_data import SplitData
    from steerscope.experiments.groundwork.splits import splits_of_task
    from steerscope.experiments.tasks import get_task

    data = SplitData(loaded, splits_of_task(get_task("compare")), Schedule(steps=3, batch_size=4), 16, 16)
    before = {name: tensor.clone() for name, tensor in loaded.model.named_parameters()}
    update, outcome = trained_update(loaded, data, method, 1e-2, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.named_parameters())
    assert set(update) == set(weight_names(loaded).values())
    assert all(float(change.abs().max()) > 0 for change in update.values())
    if method == "lora":
        assert all(torch.linalg.matrix_rank(change, rtol=1e-4) <= 8 for change in update.values())
    assert outcome["loss"] > 0


def test_it_measures_every_matrix_on_every_text_and_refuses_wrong_layers(loaded, tmp_path):
    given = {"steps": 2, "batch_size": 4, "prompts": 40, "tokens": 20, "seeds": [0], "rates": {"lora": 1e-2}}
    with pytest.raises(InputError, match="blocks 0 to"):
        run(loaded, "compare", [99], {}, **given)
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"text number {i} is about nothing" for i in range(40)), encoding="utf-8")
    texts = lines_of(lines)
    with pytest.raises(InputError, match=r"lines.txt has 0 texts of 500 tokens"):
        windows_of(loaded, texts, "lines.txt", 500, 40)
    found = run(loaded, "compare", [0], {"text": windows_of(loaded, texts, "lines.txt", 20, 40)}, **given)
    assert {row["texts"] for row in found["rows"]} == {"compare", "text"}
    maps = {path for layer, path in loaded.site_map.linear_maps() if layer == 0}
    assert {row["matrix"] for row in found["rows"]} == {ALL, *maps}
    # What contains another's reads leaves no more of what it was fitted on; held out it may, by a little.
    assert all(row["both"] < row["block"] + 0.2 for row in found["rows"])


def test_it_learns_lines_of_a_file_and_measures_on_those_it_has_not_seen(loaded, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"text number {i} is about the number {i}" for i in range(100)), encoding="utf-8")
    given = {"steps": 12, "batch_size": 4, "prompts": 40, "tokens": 20, "seeds": [0, 1], "rates": {"sft": 3e-3}}
    path = tmp_path / "kept.json"
    first = run(loaded, str(lines), [0], {}, path=path, **{**given, "seeds": [1]})
    found = run(loaded, str(lines), [0], {}, path=path, **given)  # goes on where the first call stopped
    assert found["trained"][0] == first["trained"][0]
    assert json.loads(path.read_text()) == found
    assert len(found["rows"]) == 2 * len(first["rows"])
    told = summary(found).splitlines()
    assert len(told) == 2 + len({row["matrix"] for row in found["rows"]})
    own = [row for row in found["rows"] if row["matrix"] == ALL]
    assert told[2].startswith(f"| sft | lines.txt | all | 1 x 2 | {sum(row['block'] for row in own) / 2:.1%} | ")
    with pytest.raises(InputError, match="is of another steps"):
        run(loaded, str(lines), [0], {}, path=path, **{**given, "steps": 3})
    assert {row["texts"] for row in found["rows"]} == {"lines.txt"}
    assert all(one["per_token"] < one["per_token_before"] for one in found["trained"])
    assert {one["seed"] for one in found["trained"]} == {0, 1}
