"""Rankings of blocks that change the stream (post-norm, Gemma 4) or a tensor in place (Falcon), by real edits."""

import pytest
import torch

from steerscope import Example, RankOptions, rank_sites
from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.data.encoding import encode
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.errors import UnsupportedModelError
from steerscope.models import edited, reading, true_float64, wrap_model
from studies.families.tiny import VOCAB, tiny_model, tiny_tokenizer
from tests.analysis.test_capture_exact import CHOICES, gap, rows_and_losses, scores_of, together


@pytest.mark.parametrize("family", ["bert", "gemma4_text", "falcon"])
def test_features_of_every_site_are_derivatives_by_an_edit_there(family):
    loaded = wrap_model(tiny_model(family, torch.float64), tiny_tokenizer())
    model, site_map = loaded.model, loaded.site_map
    encoded = encode(CHOICES, loaded.tokenizer, 64)
    probes = make_probes(encoded, 2, VOCAB, 0, torch.float64)
    ids, mask = together(encoded)

    def scores():
        return scores_of(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, encoded, probes)

    with true_float64(model):
        features = capture(loaded, encoded, probes, SketchPlan(exact=True), seed=0, batch_size=16, padding_side="right")
        rows, plain = Rows.of(features), scores()
        sites = [site for site in site_map.sites() if site.layer == 1]
        with reading(site_map, sites) as read:
            scores()
        for site in sites:
            width = site_map.width(site)
            rms = read[site][mask.bool()].square().mean(0).sqrt()
            for found, size, edit in (
                (features.vector[site_map.write(site)], (width,), lambda x, v: v.expand_as(x)),
                (features.linear[site], (width, width), lambda x, m, rms=rms: (x / rms) @ m.T),
            ):

                def moved(parameter, site=site, edit=edit):
                    with edited(model, site_map, {site: lambda x: edit(x, parameter)}):
                        return torch.cat(scores())

                jacobian = torch.autograd.functional.jacobian(moved, torch.zeros(size, dtype=torch.float64))
                expected, _ = rows_and_losses(jacobian, plain, encoded, probes)
                expected = expected.flatten(1) @ expected.flatten(1).T
                assert expected.abs().max() > 0
                assert gap(Kernel.of([found], features, rows).probe, expected) < 1e-8, f"{site}, {size}"


@pytest.mark.parametrize("exact", [True, False])
def test_sites_whose_tensor_the_block_goes_on_to_change_are_ranked(exact):
    """Falcon adds attention's output in place to what its MLP writes."""
    loaded = wrap_model(tiny_model("falcon"), tiny_tokenizer())
    prompts = [Example(f"{3 * i % 31} {i} =", (" yes", " no")[i % 2], (" yes", " no"), i % 2) for i in range(24)]
    ranking = rank_sites(loaded, prompts, RankOptions(num_probes=1, exact=exact))
    ranked = [one for one in ranking.sites if one.family == "linear"]
    linear = {f"{one.layer}.{one.kind}": one.scores["gradient_norm"] for one in ranked}
    assert set(linear) == {str(site) for site in loaded.site_map.sites()}
    assert all(value > 0 for value in linear.values())


@pytest.mark.parametrize("exact", [True, False])
def test_a_site_that_no_derivative_comes_back_to_is_refused(exact, monkeypatch):
    loaded = wrap_model(tiny_model("falcon"), tiny_tokenizer())
    # The block changes the tensor whose derivative is asked for.
    monkeypatch.setattr("steerscope.models.hooks._of_copy", lambda tap: lambda value, read: tap(value.clone(), read))
    prompts = [Example(f"{3 * i % 31} {i} =", (" yes", " no")[i % 2], (" yes", " no"), i % 2) for i in range(24)]
    with pytest.raises(UnsupportedModelError, match=r"comes back to '\d\.mlp_out' \(4 of 13 sites\)"):
        rank_sites(loaded, prompts, RankOptions(num_probes=1, exact=exact))
