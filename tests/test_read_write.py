"""Edits that read at one block and write after another: studies/read_write.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steerscope.errors import InputError
from steerscope.models.hooks import edited, reading
from steerscope.models.load import wrap_model
from steerscope.sites import Site, SiteKind
from studies.read_write import Cell, ReadWriteEdit, cells_of, contrasts, run
from tests.byte_models import byte_model, byte_tokenizer

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(byte_model(), byte_tokenizer())


@pytest.mark.parametrize("cell", cells_of((0, 1), (1,)), ids=lambda cell: cell.name)
def test_what_is_added_is_the_map_of_what_is_read(loaded, cell):
    torch.manual_seed(0)
    scales = {str(Site(layer, kind)): 2.0 + layer for layer in range(2) for kind in SiteKind}
    model = ReadWriteEdit(loaded, cell, scales, seed=3).eval()
    plain = loaded.model(input_ids=IDS).logits
    assert torch.equal(model(input_ids=IDS).logits, plain)
    with torch.no_grad():
        model.U.normal_()
        model.c.normal_()
    with reading(loaded, model.sites) as found:
        loaded.model(input_ids=IDS)
        read = torch.cat([found[site] / scales[str(site)] for site in model.sites], -1)
    by_hand = read @ model.D.T @ model.U.T + model.c
    target = Site(cell.writes_at, SiteKind.RESID_POST)
    with edited(loaded, {target: lambda x: by_hand}):
        expected = loaded.model(input_ids=IDS).logits
    found_now = model(input_ids=IDS).logits
    torch.testing.assert_close(found_now, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found_now, plain, atol=1e-3)


def test_contrasts_change_one_factor_and_keep_the_others():
    """Losses that depend on the layer written alone, but for noise that seeds share."""
    rng = np.random.default_rng(0)
    outcomes = {cell: 1.0 + 0.1 * cell.writes_at + rng.normal(0, 1e-3, 3) for cell in cells_of((0, 2), (2, 4, 6))}
    rows = {(row["factor"], row["first"], row["second"]): row for row in contrasts(outcomes)}
    assert rows["layer written", 2, 6]["difference"] == pytest.approx(0.4, abs=0.01)
    assert rows["layer written", 2, 6]["settings"] == 8  # two layers read, four tensors
    for factor, first, second in (("layer read", 0, 2), ("what is read", "block", "mlp")):
        row = rows[factor, first, second]
        assert abs(row["difference"]) < 0.01
        assert row["low"] < 0 < row["high"]


def test_it_trains_resumes_and_refuses_layers_that_are_not_there(loaded, tmp_path):
    given = {"steps": 3, "batch_size": 4, "seeds": 1, "minutes": 5.0}
    with pytest.raises(InputError, match="blocks 0 to"):
        run(loaded, "compare", [0], [99], tmp_path, **given)
    first = run(loaded, "compare", [0], [1], tmp_path, **given)
    assert not first["missing"]
    assert {one["method"] for one in first["cells"]} == {f"0.{read}>1" for read in ("block", "mlp", "mid", "both")}
    again = run(loaded, "compare", [0], [1], tmp_path, **{**given, "minutes": 0.0})
    assert again["cells"] == first["cells"]


def test_cells_never_write_before_they_read():
    assert Cell("mlp", 3, 2) not in cells_of((1, 3), (2,))
