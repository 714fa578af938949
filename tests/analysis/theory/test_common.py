"""What the measurements share: rows of one length, sizes of updates, updated weights that come back bit for bit."""

from __future__ import annotations

import pytest
import torch

from steerscope import Example, InputError
from steerscope.analysis.data.encoding import encode
from steerscope.analysis.theory.common import (
    explained,
    explained_per_token,
    of_layer,
    ordinary,
    random_like,
    relative_size,
    rows_of_one_length,
    scaled,
    spread,
)
from steerscope.models.changed_weights import with_update
from tests.analysis.theory.cases import assert_same_bits, bits, loaded, tokens, update_of
from tests.tiny import tiny_tokenizer


def test_rows_of_the_most_frequent_length():
    texts = ["1 2 3", "4 5 6", "1 2"]
    encoded = encode([Example(f"{text} =", " 7 8") for text in texts], tiny_tokenizer(), None)
    rows = rows_of_one_length(encoded, 5)
    assert rows.ids.shape == (2, 6)
    # Positions 3 and 4 ("=" and "7") predict the two tokens of the answer.
    assert rows.answer == slice(3, 5)
    assert rows.first(1).ids.shape == (1, 6)


@pytest.mark.parametrize(("choices", "stop", "length"), [((" 1", " 2"), 4, 4), ((" 1 3", " 2"), 5, 6)])
def test_rows_of_choices_take_the_right_one(choices, stop, length):
    examples = [Example("1 2 3 =", choices[0], choices, 0)]
    rows = rows_of_one_length(encode(examples, tiny_tokenizer(), None), 5)
    assert rows.ids.shape == (1, length)
    assert rows.answer == slice(3, stop)


def test_sizes():
    model = loaded()
    update = update_of(model, size=0.25)
    assert relative_size(model, update) == pytest.approx(0.25)
    assert relative_size(model, scaled(update, 2)) == pytest.approx(0.5)
    drawn = random_like(update, 3)
    for name, change in update.items():
        assert float(drawn[name].norm()) == pytest.approx(float(change.norm()))
        assert not torch.allclose(drawn[name], change)
    mine = of_layer(model, update, 1)
    assert len(mine) == 7
    assert all(".1." in name for name in mine)


def test_spread():
    assert spread(5, 9) == (0, 1, 2, 3, 4)
    assert spread(30, 3) == (0, 14, 29)
    assert spread(30, 4) == (0, 10, 19, 29)
    assert spread(3, 1) == (1,)
    assert spread(30, 1) == (15,)


def test_explained():
    x = torch.tensor([3.0, 4.0])
    assert explained(x, x) == 1
    assert explained(x, torch.zeros(2)) == 0
    assert explained(x, -x) == -3
    assert explained(0 * x, x) != explained(0 * x, x)  # nan


def test_long_tokens_do_not_decide():
    measured = torch.ones(1, 5, 2)
    measured[0, 0] *= 1000
    predicted = measured.clone()
    predicted[0, 0] = 0  # the long token is not explained at all, the others are
    assert explained(measured, predicted) < 0.001
    assert explained_per_token(measured, predicted) == 1
    assert explained_per_token(0 * measured, predicted) != 1
    assert ordinary(measured)[0].tolist() == [False, True, True, True, True]


def test_update_is_made_and_taken_back():
    model = loaded(dtype=torch.float32)
    update, ids = update_of(model), tokens()
    before, plain = bits(model), model.model(input_ids=ids).logits
    with with_update(model, update):
        assert not torch.allclose(model.model(input_ids=ids).logits, plain)
    assert_same_bits(model, before)
    with pytest.raises(KeyboardInterrupt), with_update(model, update):
        raise KeyboardInterrupt
    assert_same_bits(model, before)
    with pytest.raises(InputError, match="does not have"), with_update(model, {"nothing": torch.zeros(1)}):
        pass
    name = next(iter(update))  # one number would be added to all, and more than there are would widen the weight
    with pytest.raises(InputError, match="has shape"), with_update(model, {name: torch.zeros(1)}):
        pass
    assert_same_bits(model, before)
