"""What a capture says of sites without a derivative, against numbers made one prompt at a time from the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerscope.analysis.capture import places
from steerscope.analysis.capture.capture import capture, read_stats
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.capture.places import PlaceStats, PlaceWatch, linear_cka
from steerscope.analysis.data.encoding import Encoded, OutputMode, encode
from steerscope.analysis.data.examples import Example
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.options import RankOptions
from steerscope.models.hooks import reading
from steerscope.models.load import LoadedModel, wrap_model
from steerscope.sites import Site, SiteKind
from tests.tiny import LAYOUTS, VOCAB, tiny_model, tiny_tokenizer

MODES = list(OutputMode)


def case(family: str, mode: OutputMode, prompts: int = 10) -> tuple[LoadedModel, Encoded]:
    loaded = wrap_model(tiny_model(family).double(), tiny_tokenizer())
    examples = []
    for i in range(prompts):
        prompt = " ".join(str((7 * i + j) % 10) for j in range(2 + i % 4)) + f" {i}"
        right, wrong = f" {i % 3}", f" {(i + 1) % 3}"
        if mode is OutputMode.COMPLETION:
            examples.append(Example(prompt, right))
        else:
            tail = " 7 8" if mode is OutputMode.CHOICE_LIKELIHOODS else ""
            examples.append(Example(prompt, right + tail, (wrong, right + tail), 1))
    encoded = encode(examples, loaded.tokenizer, loaded.max_length)
    assert encoded.mode is mode
    return loaded, encoded


def watched(loaded: LoadedModel, encoded: Encoded, batch_size: int = 3) -> dict[Site, PlaceStats]:
    watch = PlaceWatch(loaded, encoded)
    read_stats(loaded, encoded, batch_size=batch_size, max_examples=encoded.num_examples, watch=watch)
    return watch.stats()


def ends(loaded: LoadedModel, encoded: Encoded) -> dict[Site, Tensor]:
    """Return ``example channel`` per stream: what stands at the last token before the answer, one prompt at a time."""
    found: dict[Site, list[Tensor]] = {}
    for sequence in encoded.sequences:
        if sequence.choice == 0:
            with torch.no_grad(), reading(loaded, loaded.site_map.sites()) as seen:
                loaded.model(input_ids=torch.tensor([sequence.ids[: sequence.first_target]]), use_cache=False)
            for site in loaded.site_map.sites():
                found.setdefault(site, []).append(seen[site][0, -1])
    return {site: torch.stack(parts) for site, parts in found.items()}


def final_norm(loaded: LoadedModel) -> torch.nn.Module:
    decoder = loaded.model.get_decoder()
    return next(
        getattr(decoder, n) for n in ("norm", "ln_f", "final_layer_norm", "final_layernorm") if hasattr(decoder, n)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", LAYOUTS)
def test_the_lens_reads_the_stream_behind_a_site_through_the_final_norm(family: str, mode: OutputMode) -> None:
    loaded, encoded = case(family, mode)
    found, end = watched(loaded, encoded), ends(loaded, encoded)
    begins: dict[int, list[int]] = {}
    for sequence in encoded.sequences:
        if mode is not OutputMode.CHOICE_LOGITS:
            begins.setdefault(sequence.example, []).append(sequence.ids[sequence.first_target])
    has_mid = SiteKind.RESID_MID in loaded.site_map.description.kinds
    seen = set()
    for site, stats in found.items():
        early = (SiteKind.ATTN_HEADS, SiteKind.ATTN_OUT, SiteKind.RESID_MID)
        behind = SiteKind.RESID_MID if has_mid and site.kind in early else SiteKind.RESID_POST
        stream = end[site if site.kind is SiteKind.RESID_PRE else Site(site.layer, behind)]
        right = 0.0
        for example, row in enumerate(stream):
            with torch.no_grad():
                logits = loaded.model.get_output_embeddings()(final_norm(loaded)(row[None, None]))[0, 0]
            if mode is OutputMode.COMPLETION:
                tokens = sorted({many[0] for many in begins.values()})
                answer = tokens.index(begins[example][0])
            else:
                tokens = encoded.choice_tokens[example] if mode is OutputMode.CHOICE_LOGITS else begins[example]
                answer = encoded.answers[example]
            right += int(logits[list(tokens)].argmax()) == answer
        assert stats.lens_accuracy == pytest.approx(right / len(stream)), site
        seen.add(stats.lens_accuracy)
    assert len(seen) > 1


def test_choices_that_begin_alike_share_what_they_get() -> None:
    loaded = wrap_model(tiny_model("llama").double(), tiny_tokenizer())
    examples = [Example(f"{i} 1 =", " 3 4 5", (" 3 4 5", " 3 6 5"), 0) for i in range(6)]
    encoded = encode(examples, loaded.tokenizer, loaded.max_length)
    assert encoded.mode is OutputMode.CHOICE_LIKELIHOODS
    assert {stats.lens_accuracy for stats in watched(loaded, encoded).values()} == {0.5}


def dense_cka(first: Tensor, second: Tensor) -> float:
    """Return CKA by its definition: the Hilbert-Schmidt independence criterion, normalised."""
    n = len(first)
    centre = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n

    def hsic(k: Tensor, q: Tensor) -> float:
        return float(torch.trace(k @ centre @ q @ centre)) / (n - 1) ** 2

    one, other = first @ first.T, second @ second.T
    return hsic(one, other) / (hsic(one, one) * hsic(other, other)) ** 0.5


@pytest.mark.parametrize("family", LAYOUTS)
def test_block_change_is_one_minus_the_similarity_of_what_enters_and_leaves(family: str) -> None:
    loaded, encoded = case(family, OutputMode.CHOICE_LOGITS)
    found, end = watched(loaded, encoded), ends(loaded, encoded)
    entered = end[Site(0, SiteKind.RESID_PRE)]
    for layer in range(len(loaded.site_map.blocks)):
        left = end[Site(layer, SiteKind.RESID_POST)]
        expected = 1 - dense_cka(entered, left)
        assert 0 < expected < 1
        for site in (site for site in found if site.layer == layer):
            assert found[site].block_change == pytest.approx(expected, rel=1e-6), site
        entered = left


def test_what_is_the_same_for_all_prompts_is_like_nothing() -> None:
    drawn = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert linear_cka(torch.ones(5, 3), drawn) == 0.0
    assert linear_cka(drawn, drawn * 2 + 1) == pytest.approx(1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_feature_norms_are_means_over_tokens_of_the_maps_at_the_site(family: str) -> None:
    loaded, encoded = case(family, OutputMode.CHOICE_LOGITS)
    found, norms = watched(loaded, encoded), {}
    for (layer, path), module in loaded.site_map.linear_maps().items():
        inputs: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda m, args, inputs=inputs: inputs.append(args[0].flatten(0, -2)))
        for sequence in encoded.sequences:
            loaded.model(input_ids=torch.tensor([sequence.ids]), use_cache=False)
        handle.remove()
        weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
        z = torch.cat(inputs)
        ratio = (z @ weight.T).norm(dim=1) / z.norm(dim=1) * weight.shape[1] ** 0.5 / weight.norm()
        norms[layer, path] = float(ratio.mean())
    description = loaded.site_map.description
    for site, stats in found.items():
        match site.kind:
            case SiteKind.MLP_IN:
                paths = description.mlp_reads
            case SiteKind.RESID_PRE:
                paths = description.attn_reads
            case SiteKind.ATTN_HEADS | SiteKind.ATTN_OUT | SiteKind.RESID_MID:
                paths = (description.attn_write,)
            case _:
                paths = (description.mlp_write,)
        expected = sum(norms[site.layer, path] for path in paths) / len(paths)
        assert stats.feature_norm == pytest.approx(expected, rel=1e-4), site


@pytest.mark.parametrize("batch_size", [1, 10])
def test_batches_change_no_number(batch_size: int) -> None:
    loaded, encoded = case("llama", OutputMode.CHOICE_LIKELIHOODS)
    one, other = watched(loaded, encoded, 4), watched(loaded, encoded, batch_size)
    for site, stats in one.items():
        assert other[site].lens_accuracy == pytest.approx(stats.lens_accuracy)
        assert other[site].block_change == pytest.approx(stats.block_change, rel=1e-6)
        assert other[site].feature_norm == pytest.approx(stats.feature_norm, rel=1e-5)


def test_the_pass_leaves_the_model_as_it_was() -> None:
    loaded, encoded = case("llama", OutputMode.CHOICE_LOGITS)
    ids = torch.tensor([encoded.sequences[0].ids])
    before = loaded.model(input_ids=ids).logits
    found = capture(
        loaded, encoded, make_probes(encoded, 1, VOCAB, 0, torch.float64), SketchPlan(exact=True), seed=0, batch_size=4
    )
    assert set(found.places) == set(loaded.site_map.sites())
    assert torch.equal(loaded.model(input_ids=ids).logits, before)
    assert not any("forward" in vars(block.module) for block in loaded.site_map.blocks)


def test_rankings_hold_the_numbers() -> None:
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    examples = [Example(f"[ MAX {i} {i * 7 % 40} ] =", f" {i}", (f" {i}", f" {i + 1}"), 0) for i in range(24)]
    ranking = rank_sites(loaded, examples, RankOptions(score="feature_norm"))
    norms = {(site.layer, site.kind): site.scores["feature_norm"] for site in ranking.sites if site.family == "linear"}
    assert all(value < 0 for value in norms.values())
    assert norms[0, "mlp_out"] == norms[0, "mlp_hidden"] != norms[0, "attn_out"]
    assert [site.score for site in ranking.sites] == sorted((site.score for site in ranking.sites), reverse=True)
    for site in ranking.sites:
        assert 0 <= site.scores["lens_accuracy"] <= 1
        assert 0 <= site.scores["projected_residual_norm"] <= 1
        assert site.scores["relative_gradient_norm"] > 0


@pytest.mark.parametrize("family", ["bert", "rembert"])
def test_the_lens_goes_through_all_of_the_head(family: str) -> None:
    """Behind the last block it says what the model says, also where a layer stands before the output embedding."""
    from studies.families.tiny import tiny_model as any_model
    from studies.families.tiny import tiny_tokenizer as its_tokenizer

    loaded = wrap_model(any_model(family), its_tokenizer())
    examples = [Example(f"{i} {3 * i % 31} =", f" {i % 3}", (" 0", " 1", " 2"), i % 3) for i in range(12)]
    encoded = encode(examples, loaded.tokenizer, loaded.max_length)
    right = 0
    for sequence, choices, answer in zip(encoded.sequences, encoded.choice_tokens, encoded.answers, strict=True):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([sequence.ids]), use_cache=False).logits[0, -1]
        right += int(logits[list(choices)].argmax()) == answer
    assert watched(loaded, encoded)[Site(1, SiteKind.RESID_POST)].lens_accuracy == pytest.approx(right / 12)


def test_streams_in_several_calls_have_the_accuracies_of_one(monkeypatch):
    loaded, encoded = case("llama", OutputMode.CHOICE_LOGITS)
    expected = watched(loaded, encoded)
    calls: list[int] = []
    hidden = PlaceWatch._hidden
    monkeypatch.setattr(PlaceWatch, "_hidden", lambda self, ends: calls.append(len(ends)) or hidden(self, ends))
    monkeypatch.setattr(places, "_TOGETHER", 2 * 10 * 16)  # two streams of ten prompts
    assert watched(loaded, encoded) == expected
    assert max(calls) == 2
    assert len(calls) > 2
