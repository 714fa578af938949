"""Families against their equations written out, their starts, and the configuration's refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.models import find_sites
from steerscope.sites import Site, SiteKind
from steerscope.steering import FAMILIES, SteeringConfig, get_steering_model, start_slope
from steerscope.steering.families import EditOptions, Rotation
from tests.steering.cases import SETTINGS, close, config_of, padded, prompts, randomise, steered
from tests.tiny import tiny_model

WIDTH, RANK = 10, 3


def edit_of(family: str, start: str = "no-op", seed: int = 0, **changes):
    has_rank = FAMILIES[family].has_rank
    options = EditOptions(
        **{
            "width": WIDTH,
            "rank": RANK if has_rank else None,
            "activation": "tanh",
            "bias": True,
            "scaled": False,
            "start": start,
            "dtype": torch.float64,
            **changes,
        }
    )
    return FAMILIES[family](options, torch.Generator().manual_seed(seed))


def moved(edit):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return edit


def by_hand(family: str, edit, x: Tensor) -> Tensor:
    """The equations of the sources, for one token."""
    if family in ("vector", "lofit_offset"):
        return x + edit.v
    if family == "lofit_scale":
        return (1 + edit.A) * x
    if family == "linear":
        return x + edit.U @ (edit.D @ x) + edit.b
    if family == "nonlinear":
        return x + edit.U @ torch.tanh(edit.D @ x) + edit.b
    if family == "noreft":
        return x + edit.V.T @ (edit.W @ x + edit.b - edit.V @ x)
    r = edit.rotation()
    close(r @ r.T, torch.eye(RANK, dtype=torch.float64), 1e-12)
    if family == "loreft":
        return x + r.T @ (edit.W @ x + edit.b - r @ x)
    return x + r.T @ (edit.W @ x + edit.b)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edit_is_the_equation(family):
    edit = moved(edit_of(family))
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = x + edit(x)
    assert (found - x).abs().max() > 0.1
    for row in range(2):
        for token in range(4):
            close(found[row, token], by_hand(family, edit, x[row, token]), 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_affine_map_is_the_edit(family):
    edit = moved(edit_of(family))
    if family == "nonlinear":
        with pytest.raises(InputError, match="is no affine map"):
            edit.affine()
        return
    x = torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    affine = edit.affine()
    total = torch.zeros_like(x)
    if affine.matrix is not None:
        total = total + x @ affine.matrix.T
    if affine.vector is not None:
        total = total + affine.vector
    close(total, edit(x), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", SETTINGS)
@torch.no_grad()
def test_no_op_start_leaves_the_logits_bit_equal(family, dtype):
    model = tiny_model("llama", dtype)
    batch = padded(prompts(), "left")
    plain = model(**batch).logits
    name = str(dtype).removeprefix("torch.")
    steering = get_steering_model(model, config_of(family, dtype=name)).eval()
    assert torch.equal(steering(**batch).logits, plain)
    assert not torch.equal(randomise(steering)(**batch).logits, plain)


@pytest.mark.parametrize("family", [name for name, found in FAMILIES.items() if found.has_published_start])
def test_the_published_start_is_the_authors(family):
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    usual, published = edit_of(family), edit_of(family, "published")
    assert torch.count_nonzero(usual(x)) == 0
    if family in ("linear", "nonlinear"):  # another start, and again no edit
        assert torch.count_nonzero(published(x)) == 0
        close(published.D, usual.D / 1000, 1e-15)
    else:
        assert torch.count_nonzero(published(x)) == x.numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient_once_it_can(family):
    edit = moved(edit_of(family))
    edit(torch.randn(5, WIDTH, dtype=torch.float64)).square().sum().backward()
    for name, parameter in edit.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_the_draw_is_the_same_in_every_data_type():
    single, double = edit_of("linear", dtype=torch.float32), edit_of("linear")
    assert torch.equal(single.D, double.D.float())
    assert not torch.equal(edit_of("linear", seed=1).D, double.D)
    assert float(double.D.detach().abs().max()) <= WIDTH**-0.5


def test_scale_divides_what_is_read():
    for family in ("linear", "nonlinear", "direft"):
        scaled, plain = edit_of(family, scaled=True), edit_of(family)
        x = torch.randn(5, WIDTH, dtype=torch.float64)
        with pytest.raises(InputError, match=r"was not measured yet; call model.measure_scales"):
            scaled(x)
        scaled.set_scale(4.0)
        close(moved(scaled)(4 * x), moved(plain)(x), 1e-12)
        with pytest.raises(InputError, match="must be positive and finite, got nan"):
            scaled.set_scale(float("nan"))
        with pytest.raises(InputError, match="reads without a scale"):
            plain.set_scale(1.0)


@torch.no_grad()
def test_measured_scales_are_root_mean_squares_without_padding():
    from steerscope.models import reading

    base = tiny_model("llama", torch.float64)
    site_map, batch = find_sites(base), padded(prompts(), "left")
    config = SteeringConfig(("0.resid_post", "1.attn_heads.2"), scale="rms", dtype="float64")
    with reading(site_map, ["0.resid_post", "1.attn_heads"]) as found:
        base(**batch)
    kept = batch["attention_mask"] != 0
    values = {str(site): value[kept] for site, value in found.items()}
    head = values["1.attn_heads"].unflatten(-1, (4, -1))[:, 2]
    expected = {
        "0.resid_post": float(values["0.resid_post"].square().mean().sqrt()),
        "1.attn_heads.2": float(head.square().mean().sqrt()),
    }
    steering = get_steering_model(base, config).train()
    measured = steering.measure_scales([{**batch, "labels": batch["input_ids"], "other": batch["input_ids"]}])
    assert measured == pytest.approx(expected, rel=1e-12)
    assert steering.training
    assert float(steering.edit_at("0.resid_post").scale) == measured["0.resid_post"]
    with pytest.raises(InputError, match="no batch was given"):
        steering.measure_scales([])


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_does_not_lower_the_precision(family):
    edit = moved(edit_of(family, dtype=torch.float32))
    x = torch.randn(5, WIDTH)
    expected = edit(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x.T).dtype is torch.bfloat16
        assert torch.equal(edit(x), expected)


# --- rows that stay orthonormal ---


def test_rotation_survives_optimizers_and_weight_decay():
    rotation = Rotation(RANK, WIDTH, torch.float64, torch.Generator().manual_seed(0))
    start = rotation().detach().clone()
    target = torch.randn(RANK, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(rotation.parameters(), lr=0.05, weight_decay=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (rotation() - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        found = rotation().detach()
        close(found @ found.T, torch.eye(RANK, dtype=torch.float64), 1e-12)
    assert losses[-1] < 0.8 * losses[0]
    assert (rotation() - start).abs().max() > 0.1


def test_torchs_own_parametrisation_is_destroyed_by_weight_decay():
    """Why there is a Rotation: should this fail one day, torch's own will do."""
    module = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(WIDTH, RANK, bias=False))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    module.weight.sum().backward()
    optimizer.step()
    assert torch.count_nonzero(module.weight) == 0


def test_a_rotation_wider_than_its_space_is_refused():
    with pytest.raises(InputError, match="11 orthonormal rows do not fit into 10 channels"):
        Rotation(11, WIDTH, torch.float64, torch.Generator())
    square = Rotation(WIDTH, WIDTH, torch.float64, torch.Generator().manual_seed(0))()
    close(square @ square.T, torch.eye(WIDTH, dtype=torch.float64), 1e-12)


# --- start slopes ---


@pytest.mark.parametrize(("activation", "slope"), [("silu", 0.5), ("gelu", 0.5), ("tanh", 1.0)])
def test_start_slopes(activation, slope):
    z = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = start_slope(activation, 1e-3 * z)
    assert small.slope == pytest.approx(slope, rel=1e-3)
    assert small.linear_share > 0.999
    # At the usual start D x / s has a standard deviation near 1/sqrt(3); by Stein's lemma the slope is E phi'(z).
    usual = z / 3**0.5
    leaf = usual.clone().requires_grad_()
    from steerscope.steering.families import ACTIVATIONS

    (derivative,) = torch.autograd.grad(ACTIVATIONS[activation](leaf).sum(), leaf)
    found = start_slope(activation, usual)
    assert found.slope == pytest.approx(float(derivative.mean()), rel=0.02)
    assert found.linear_share < 0.999
    assert start_slope(activation, 10 * z).linear_share < found.linear_share


def test_start_slope_refuses_nonsense():
    with pytest.raises(InputError, match="unknown activation 'relu'"):
        start_slope("relu", torch.ones(3))
    with pytest.raises(InputError, match="all zero"):
        start_slope("silu", torch.zeros(3))


# --- configuration ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ()}, "needs a site"),
        ({"sites": "0.resid_past"}, r"unknown site kind 'resid_past'\. Did you mean 'resid_post'"),
        ({"sites": "pre-mlp"}, "ambiguous"),
        ({"family": "liner"}, "unknown family 'liner'. Did you mean 'linear'"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.5}, "got 2.5"),
        ({"family": "vector", "rank": 3}, "has no rank; got rank=3"),
        ({"positions": "begin"}, "unknown positions"),
        ({"activation": "tanh"}, "'linear' has no activation"),
        ({"family": "nonlinear", "activation": "relu"}, "unknown activation 'relu'"),
        ({"family": "loreft", "bias": True}, "leaves no choice of bias"),
        ({"family": "vector", "scale": "rms"}, r"not defined with a scale .* one of linear, nonlinear, direft"),
        ({"scale": "mean"}, "unknown scale 'mean'"),
        ({"family": "vector", "start": "published"}, "has one start"),
        ({"start": "zero"}, "unknown start 'zero'"),
        ({"dtype": "float31"}, "unknown dtype 'float31'. Did you mean 'float32'"),
        ({"family": "loreft", "dtype": "bfloat16"}, "which bfloat16 cannot hold"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SteeringConfig(**{"sites": "resid_post", **changes})


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("7.resid_post", "layers 0 to 1"),
        (("resid_post", "0.resid_post"), "'0.resid_post' is named twice"),
        (("1.resid_pre", "0.resid_post"), "'0.resid_post' is named twice"),
        (("0.attn_heads", "0.attn_heads.1"), "one of the heads of"),
        ("resid_pre", r"is '0.resid_pre' and 'resid_post' of all layers but the last"),
    ],
)
def test_sites_a_model_does_not_take_are_refused(sites, message):
    with pytest.raises(InputError, match=message):
        SteeringConfig(sites).resolve(find_sites(tiny_model("llama")))


def test_lofit_is_for_heads_and_a_parallel_block_has_no_resid_mid():
    with pytest.raises(InputError, match=r"edits attn_heads alone, got the site '0\.mlp_out'"):
        SteeringConfig("mlp_out", "lofit_scale").resolve(find_sites(tiny_model("llama")))
    with pytest.raises(InputError, match="has no site 'resid_mid'"):
        get_steering_model(tiny_model("phi"), SteeringConfig("resid_mid"))


def test_a_kind_means_every_layer_and_aliases_are_known():
    site_map = find_sites(tiny_model("llama"))
    names = [str(site) for site in SteeringConfig(("block_output", "blocks.1.hook_mlp_out")).resolve(site_map)]
    assert names == ["0.resid_post", "1.mlp_out", "1.resid_post"]


def test_defaults_and_dictionary():
    config = SteeringConfig("resid_post")
    assert (config.rank, config.bias, config.activation) == (8, True, None)
    assert SteeringConfig("resid_post", "nonlinear").activation == "silu"
    assert SteeringConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match=r"lacks \['rank'\] and has unknown \['r'\]"):
        SteeringConfig.from_dict({("r" if k == "rank" else k): v for k, v in config.to_dict().items()})


def test_without_bias_there_is_none():
    assert "b" not in dict(steered("linear", bias=False).edit_at("0.resid_post").named_parameters())
    assert "b" in dict(steered("linear").edit_at("0.resid_post").named_parameters())


def test_what_configurations_take():
    config = SteeringConfig(Site(0, SiteKind.MLP_OUT), rank=np.int64(4), seed=np.int32(5), dtype=torch.float64)
    assert config == SteeringConfig("0.mlp_out", rank=4, seed=5, dtype="float64")
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    for field, value in (("bias", "False"), ("bias", 1), ("seed", True), ("seed", 1.0), ("rank", True), ("rank", 4.0)):
        with pytest.raises(InputError, match=rf"\[\[?{field}|{field}"):
            SteeringConfig("mlp_out", **{field: value})
    with pytest.raises(InputError, match="Valid: float32"):
        SteeringConfig("mlp_out", dtype=torch.int8)
    for sites in (None, 5):
        with pytest.raises(InputError, match="expected a site"):
            SteeringConfig(sites)
