"""``steerscope sites``: the sites of a model with their equations, and the command line's own help."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import steerscope.models
from steerscope.sites import SiteKind
from tests.cli.runs import one_sentence, run, save_model
from tests.tiny import LAYOUTS


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sites")
    return {family: save_model(folder / family, family) for family in LAYOUTS}


@pytest.mark.parametrize("family", LAYOUTS)
def test_lists_every_kind_with_its_equation(models, family, capsys):
    assert run("sites", models[family]) == 0
    out, _ = capsys.readouterr()
    rows = {line.split()[0]: line for line in out.splitlines() if " = " in line}
    lacks = {"resid_mid"} if family in ("gpt_neox", "phi") else set()
    assert set(rows) == {kind.value for kind in SiteKind} - lacks
    post = "h + attn_out + mlp_out" if lacks else "resid_mid + mlp_out"
    assert f"= {post} " in rows["resid_post"]
    assert ("p2 (" in rows["mlp_out"]) == (family == "gemma2")
    assert "2 layers, d_model 16" in out
    assert "self-check passed" in out
    assert "\x1b" not in out


def test_names_the_model(models, capsys):
    assert run("sites", models["llama"]) == 0
    sha256 = hashlib.sha256((models["llama"] / "model.safetensors").read_bytes()).hexdigest()
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{models['llama']}: 5,584 parameters, sha256 {sha256[:12]}"


def test_shows_the_sites_asked_for(models, capsys):
    asked = ["1.hook_mlp_out", "blocks.0.hook_resid_post", "1.resid_pre", "0.attn_heads", "1.attn_heads.3", "1.mlp_in"]
    assert run("sites", models["llama"], *asked) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "1.mlp_out = W_down mlp_hidden  (16 channels)",
        "0.resid_post = resid_mid + mlp_out  (16 channels)",
        "0.resid_post = resid_mid + mlp_out  (16 channels)",  # what enters a block is what the one below it leaves
        "0.attn_heads = heads of A(n1 h), before the output projection  (16 channels)",
        "1.attn_heads.3 = heads of A(n1 h), before the output projection  (4 channels)",
        "1.mlp_in = n2 resid_mid  (16 channels)",
    ]


REFUSED_BY_THE_MODEL = {
    "layer": ("2.mlp_out", "layer 2; this model has layers 0 to 1"),
    "head": ("0.attn_heads.4", "head 4; this model has heads 0 to 3"),
}


@pytest.mark.parametrize("case", REFUSED_BY_THE_MODEL)
def test_site_that_this_model_lacks(models, case, capsys):
    name, message = REFUSED_BY_THE_MODEL[case]
    assert run("sites", models["llama"], name) == 2
    assert message in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("family", ["gpt_neox", "phi"])
def test_parallel_blocks_have_no_resid_mid(models, family, capsys):
    assert run("sites", models[family], "0.resid_mid") == 2
    said = one_sentence(capsys.readouterr().err)
    assert "has no site 'resid_mid' (attention and MLP read the same stream)" in said
    assert "It has: resid_pre, attn_heads, attn_out, mlp_in, mlp_hidden, mlp_out, resid_post." in said


REFUSED_BY_NAME = {
    "slip": ("1.mlp_otu", "unknown site kind 'mlp_otu'. Did you mean 'mlp_out'"),
    "ambiguous": ("1.pre-MLP", "is ambiguous: an edit of 'attn_out' moves the stream and the MLP's input"),
    "ambiguous, other spelling": ("1.pre_mlp", "an edit of 'mlp_in' moves the MLP's input alone. Name one of the two"),
    "no layer": ("mlp_out", "cannot read the site 'mlp_out'; expected 'layer.kind', for example '12.resid_post'"),
    "other tool's name": ("1.mlp_activation", "Use 'mlp_hidden' if that is what you mean"),
    "head of no head": ("1.mlp_out.2", "only 'attn_heads' has heads"),
}


@pytest.mark.parametrize("case", REFUSED_BY_NAME)
def test_bad_site_is_refused_before_the_model_is_loaded(monkeypatch, case, capsys):
    monkeypatch.setattr(steerscope.models, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    name, message = REFUSED_BY_NAME[case]
    assert run("sites", "smollm2-135m", name) == 2
    assert message in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["--help"], ["rank", "--help"], ["sites", "--help"]], ids=" ".join)
def test_help(arguments, capsys):
    assert run(*arguments) == 0
    out, err = capsys.readouterr()
    assert "Usage:" in out
    assert err == ""


def test_no_command_shows_the_help(capsys):
    assert run() == 2
    assert "Usage:" in "".join(capsys.readouterr())
