"""Steering vectors from contrast pairs: what activations differ by, checked against activations read by hand."""

from __future__ import annotations

import pytest
import torch

from steerscope.errors import InputError
from steerscope.models import reading, wrap_model
from steerscope.steering import SteeringModel, contrast_vectors, get_steering_model
from tests.steering.cases import close, config_of, hooks_of, steered
from tests.tiny import tiny_model, tiny_tokenizer

POSITIVES = ["[ MAX 3 5 ] = yes", "[ MIN 2 ] yes yes", "[ SM 9 8 7 ] = ? yes"]
NEGATIVES = ["[ MAX 3 5 ] = no", "[ MIN 2 ] no", "[ SM 9 8 7 ] = ? 4 no"]
SITES = ("0.resid_post", "1.mlp_hidden", "1.attn_heads.2", "0.resid_mid")


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(tiny_model("llama", torch.float64), tiny_tokenizer(), name="tiny")


@torch.no_grad()
def by_hand(loaded, site: str, texts: list[str], tokens: slice) -> torch.Tensor:
    """What a site reads, text by text without padding, averaged over some tokens."""
    found = []
    for text in texts:
        with reading(loaded, [site]) as seen:
            loaded.model(input_ids=torch.tensor([loaded.tokenizer(text)["input_ids"]]))
        found.append(seen[site][0, tokens].mean(0))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("positions", "tokens"),
    [("last", slice(-1, None)), ("last:3", slice(-3, None)), ("first:2", slice(0, 2)), ("all", slice(None))],
)
@pytest.mark.parametrize("site", SITES)
def test_the_difference_of_means(loaded, site, positions, tokens):
    if positions == "first:2" and site.startswith("0."):
        with pytest.raises(InputError, match="do not differ at"):  # the texts begin alike
            contrast_vectors(loaded, POSITIVES[:1], NEGATIVES[:1], sites=site, positions=positions)
        return
    texts = (POSITIVES, ["no " + text for text in NEGATIVES]) if positions == "first:2" else (POSITIVES, NEGATIVES)
    found = contrast_vectors(loaded, *texts, sites=site, positions=positions, batch_size=2)
    above, below = (by_hand(loaded, site, part, tokens) for part in texts)
    close(found.vectors[site], above.mean(0) - below.mean(0))
    along = (above - below) @ (found.vectors[site] / found.vectors[site].norm())
    assert found.explained[site] == pytest.approx(float(along.square().sum() / (above - below).square().sum()))


@pytest.mark.parametrize("flip", [False, True])
def test_the_first_principal_component_points_to_the_positives(loaded, flip):
    texts = (NEGATIVES, POSITIVES) if flip else (POSITIVES, NEGATIVES)
    found = contrast_vectors(loaded, *texts, sites="1.resid_post", method="pca")
    vector = found.vectors["1.resid_post"]
    above, below = (by_hand(loaded, "1.resid_post", part, slice(-1, None)) for part in texts)
    differences = above - below
    values, directions = torch.linalg.eigh(differences.T @ differences)
    direction = directions[:, -1]
    close(vector, direction * (direction @ differences.mean(0)))
    assert float(vector @ differences.mean(0)) > 0
    assert found.explained["1.resid_post"] == pytest.approx(float(values[-1] / values.sum()))


def test_sets_of_different_size_have_a_difference_of_means(loaded):
    found = contrast_vectors(loaded, POSITIVES, NEGATIVES[:2], sites="1.resid_post")
    above = by_hand(loaded, "1.resid_post", POSITIVES, slice(-1, None))
    below = by_hand(loaded, "1.resid_post", NEGATIVES[:2], slice(-1, None))
    close(found.vectors["1.resid_post"], above.mean(0) - below.mean(0))
    assert found.explained == {}
    with pytest.raises(InputError, match="'pca' needs two pairs or more, got 3 positives and 2 negatives"):
        contrast_vectors(loaded, POSITIVES, NEGATIVES[:2], sites="1.resid_post", method="pca")


@torch.no_grad()
def test_the_vectors_are_an_adapter_like_any_other(loaded, tmp_path):
    found = contrast_vectors(loaded, POSITIVES, NEGATIVES, sites="resid_post")
    assert list(found.vectors) == ["0.resid_post", "1.resid_post"]
    assert "1.resid_post: length" in str(found)
    inputs = {"input_ids": torch.tensor([[3, 4, 5]])}
    base = loaded.model(**inputs).logits
    steering = found.put_on(loaded, strength=1.5)
    assert not any(p.requires_grad for p in steering.parameters())
    expected = steering(**inputs).logits
    assert (expected - base).abs().max() > 1e-3
    with steering.at_strength(0):
        assert torch.equal(steering(**inputs).logits, base)
    steering.save_pretrained(tmp_path / "vectors")
    steering.unload()
    again = SteeringModel.from_pretrained(loaded, tmp_path / "vectors")
    assert again.strength == 1.5
    assert torch.equal(again(**inputs).logits, expected)
    again.unload()
    assert hooks_of(loaded.model) == 0

    trained = get_steering_model(loaded, config_of("linear"))
    assert found.put_on(trained, adapter_name="contrast") is trained
    assert trained.active_adapter == "default"
    trained.set_adapter("contrast")
    close(trained.edit_at("0.resid_post").v.double(), found.vectors["0.resid_post"], 1e-6)
    trained.unload()


def test_token_ids_need_no_tokenizer(loaded):
    rows = [[loaded.tokenizer(text)["input_ids"] for text in texts] for texts in (POSITIVES, NEGATIVES)]
    found = contrast_vectors(loaded.model, *rows, sites="1.mlp_out")
    expected = contrast_vectors(loaded, POSITIVES, NEGATIVES, sites="1.mlp_out")
    assert torch.equal(found.vectors["1.mlp_out"], expected.vectors["1.mlp_out"])
    tensors = [[torch.tensor(row) for row in part] for part in rows]
    again = contrast_vectors(loaded.model, *tensors, sites="1.mlp_out")
    assert torch.equal(again.vectors["1.mlp_out"], found.vectors["1.mlp_out"])


def test_vectors_of_another_width_are_refused_and_nothing_stays(loaded):
    found = contrast_vectors(loaded, POSITIVES, NEGATIVES, sites="1.resid_post")
    other = tiny_model("llama", hidden_size=32)
    with pytest.raises(InputError, match="has 16 channels, and this model's site 32"):
        found.put_on(other)
    assert hooks_of(other) == 0


def test_a_steered_model_is_not_read_by_mistake(loaded):
    model = steered("linear")
    with pytest.raises(InputError, match="this model is steered"):
        contrast_vectors(model, [[3, 4]], [[5, 6]], sites="1.resid_post")
    with model.disable_adapter():
        found = contrast_vectors(model, [[3, 4]], [[5, 6]], sites="1.resid_post")
    expected = contrast_vectors(model.unload(), [[3, 4]], [[5, 6]], sites="1.resid_post")
    assert torch.equal(found.vectors["1.resid_post"], expected.vectors["1.resid_post"])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (([], ["a"]), {}, "a list of texts, at least one"),
        (("yes", "no"), {}, "a list of texts, at least one"),
        ((["yes"], [""]), {}, "which has no token"),
        ((["yes"], ["yes"]), {}, "do not differ at '1.resid_post'"),
        ((["yes"], [3.5]), {}, "expected a text, or its token ids"),
        ((["yes " * 70], ["no"]), {}, "has 70 tokens, and the model reads 64"),
        ((["yes"], ["no"]), {"method": "PCA"}, "valid: mean, pca"),
        ((["yes"], ["no"]), {"method": "pca"}, "two pairs or more"),
        ((["yes"], ["no"]), {"positions": "completion"}, "one averages 'last'"),
        ((["yes"], ["no"]), {"sites": "9.resid_post"}, "layers 0 to 1"),
        ((["yes"], ["no"]), {"sites": ()}, "needs a site"),
        ((["yes"], ["no"]), {"batch_size": 0}, "at least 1"),
    ],
)
def test_what_gives_no_vector_is_refused(loaded, texts, options, message):
    with pytest.raises(InputError, match=message):
        contrast_vectors(loaded, *texts, **{"sites": "1.resid_post", **options})


def test_texts_without_a_tokenizer_are_refused(loaded):
    with pytest.raises(InputError, match="need the model's tokenizer"):
        contrast_vectors(loaded.model, ["yes"], ["no"], sites="1.resid_post")
