"""What capture measures before it projects: scales of channels, and typical lengths of what is read and held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerscope.analysis.capture.capture import capture, read_stats
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.data.encoding import Encoded, encode
from steerscope.analysis.data.examples import Example
from steerscope.models.load import LoadedModel, wrap_model
from steerscope.sites import Site, SiteKind
from steerscope.steering.scales import measure_scales
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer


def case(family: str) -> tuple[LoadedModel, Encoded]:
    loaded = wrap_model(tiny_model(family).double(), tiny_tokenizer())
    prompts = [" ".join(str((7 * i + j) % 10) for j in range(2 + i)) + " =" for i in range(6)]
    examples = [Example(prompt, " 1", (" 1", " 2", " 3"), 0) for prompt in prompts]
    return loaded, encode(examples, loaded.tokenizer, loaded.max_length)


def streams(loaded: LoadedModel, encoded: Encoded) -> list[list[Tensor]]:
    """Return, per sequence and layer, the stream a block is given and those it returns, one sequence at a time."""
    out = []
    for sequence in encoded.sequences:
        ids = torch.tensor([sequence.ids])
        seen: list[Tensor] = []
        handles = [
            block.module.register_forward_hook(
                lambda module, args, output, seen=seen: seen.append(
                    (output[0] if isinstance(output, tuple) else output)[0]
                )
            )
            for block in loaded.site_map.blocks
        ]
        loaded.model(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        out.append(seen)
    return out


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_lengths_are_medians_over_the_middle_and_the_last_token(family: str) -> None:
    loaded, encoded = case(family)
    with torch.no_grad():
        stats = read_stats(loaded, encoded, batch_size=4, max_examples=6)
        found = streams(loaded, encoded)
    layer = 1
    site = Site(layer, SiteKind.RESID_POST)
    every = torch.cat([one[layer] for one in found])
    scale = every.pow(2).mean(0).sqrt()
    picked = torch.stack([one[layer][at] for one in found for at in (len(one[layer]) // 2, len(one[layer]) - 1)])
    assert torch.allclose(stats.scales[site], scale)
    raw, scaled = stats.lengths[site]
    assert raw == pytest.approx(float(picked.norm(dim=1).median()), rel=1e-6)
    assert scaled == pytest.approx(float((picked / scale).norm(dim=1).median()), rel=1e-6)
    # Not the mean over all tokens: the control that tells the two apart.
    assert raw != pytest.approx(float(every.norm(dim=1).mean()), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_edits_of_the_stream_are_measured_against_the_stream(family: str) -> None:
    loaded, encoded = case(family)
    probes = make_probes(encoded, 2, VOCAB, 0, torch.float64)
    found = capture(loaded, encoded, probes, SketchPlan(exact=True), seed=0, batch_size=4)
    stats = read_stats(loaded, encoded, batch_size=4, max_examples=6)
    has_mid = SiteKind.RESID_MID in loaded.site_map.description.kinds
    assert has_mid == (family != "gpt_neox")
    for layer in range(len(loaded.site_map.blocks)):
        after_attention = SiteKind.RESID_MID if has_mid else SiteKind.RESID_POST
        expected = {
            SiteKind.ATTN_OUT: after_attention,
            SiteKind.MLP_OUT: SiteKind.RESID_POST,
            SiteKind.ATTN_HEADS: SiteKind.ATTN_HEADS,
            SiteKind.MLP_HIDDEN: SiteKind.MLP_HIDDEN,
        }
        for write, held in expected.items():
            assert found.held_length[Site(layer, write)] == stats.lengths[Site(layer, held)][0]
    assert set(found.held_length) == {site.write for site in found.linear}
    assert found.read_length == {site: scaled for site, (_, scaled) in stats.lengths.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_batches_change_no_length(batch_size: int) -> None:
    loaded, encoded = case("llama")
    one = read_stats(loaded, encoded, batch_size=3, max_examples=6)
    other = read_stats(loaded, encoded, batch_size=batch_size, max_examples=6)
    for site, (raw, scaled) in one.lengths.items():
        assert other.lengths[site] == (pytest.approx(raw, rel=1e-10), pytest.approx(scaled, rel=1e-10))


def test_the_scale_of_a_trained_edit_is_the_mean_over_channels() -> None:
    loaded, encoded = case("llama")
    sites = loaded.site_map.sites()
    one_by_one = [{"input_ids": torch.tensor([sequence.ids])} for sequence in encoded.sequences]
    scales = measure_scales(loaded.model, loaded.site_map, sites, one_by_one)
    stats = read_stats(loaded, encoded, batch_size=4, max_examples=6)
    assert scales == pytest.approx({site: float(stats.scales[site].square().mean().sqrt()) for site in sites})
