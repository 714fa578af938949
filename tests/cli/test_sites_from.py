"""From a ranking to an adapter: the sites that it chooses, as a configuration and in ``steerscope train``."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from steerscope import InputError, Ranking, SteeringConfig
from steerscope.experiments.training import read_results
from steerscope.reports.ranking.next_step import next_step
from steerscope.reports.ranking.verdict import recommends
from tests.byte_models import byte_model, byte_tokenizer
from tests.cli.runs import one_sentence, run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites-from")
    byte_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    more = ("--max-examples", 48, "--kinds", "mlp_out,resid_post,attn_out", "--max-sites", 2, "--rank", 2)
    assert run("rank", folder / "model", *more, "--json", folder / "ranking.json", "--quiet") == 0
    return folder


@pytest.fixture(scope="module")
def ranking(place) -> Ranking:
    return Ranking.load(place / "ranking.json")


def test_a_configuration_of_what_was_ranked(ranking):
    best = ranking.best().name
    linear = ranking.recommended("linear").name
    assert ranking.steering_config("best") == SteeringConfig(sites=best, rank=2)
    assert ranking.steering_config(family="linear") == SteeringConfig(sites=linear, rank=2)
    assert ranking.steering_config("best", rank=3, positions="last").rank == 3
    assert ranking.steering_config("mlp_out") == SteeringConfig(sites="mlp_out", rank=2)
    assert ranking.steering_config("post-block").sites == ("resid_post",)
    steps = tuple(f"{step.layer}.{step.kind}" for step in ranking.greedy)
    assert ranking.steering_config("set").sites == steps
    assert len(steps) == 2
    vector = ranking.steering_config(family="vector")
    assert vector == SteeringConfig(sites=ranking.recommended("vector").name, family="vector")
    assert ranking.steering_config(family="loreft").sites == (linear,)
    for which, options, message in (
        ("bset", {}, "which is 'bset'; expected recommended, best, set or a kind of site"),
        ("mlp_in", {}, "no sites of kind 'mlp_in'; it has attn_out, mlp_out, resid_post"),
        ("best", {"ranks": 3}, "steering_config got ranks; expected fields among"),
    ):
        with pytest.raises(InputError, match=message):
            ranking.steering_config(which, **options)


def with_standings(ranking: Ranking, standings: list[tuple[str, int, float | None]]) -> Ranking:
    """A ranking whose first candidates stand as given: standing, parameters, end of the interval of the difference."""
    sites = [
        replace(site, standing=standing, n_params=n_params, difference_high=high)
        for site, (standing, n_params, high) in zip(ranking.sites, standings, strict=False)
    ]
    return replace(ranking, sites=(*sites, *(replace(one, standing="worse") for one in ranking.sites[len(sites) :])))


def test_a_choice_that_nothing_speaks_for_is_warned_of(ranking):
    told = [replace(ranking, stability=replace(ranking.stability, can_tell=can_tell)) for can_tell in (True, False)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sure = told[0].steering_config()
    with pytest.warns(UserWarning, match="cannot tell the sites apart, so it recommends none"):
        assert told[1].steering_config() == sure
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told[1].steering_config("best")  # which is what was asked for


@pytest.mark.filterwarnings("ignore:the prompts of this ranking cannot tell")
@pytest.mark.parametrize(
    ("standings", "place_of_choice"),
    [
        ([("equal", 90, None), ("equal", 30, 0.02), ("equal", 30, 0.01), ("undetermined", 5, 0.1)], 2),
        ([("equal", 30, None), ("worse", 5, 0.1), ("equal", 40, 0.01)], 0),
        ([(None, 30, None), (None, 5, None)], 0),  # a file of before
    ],
)
def test_the_report_and_the_configuration_name_one_choice(ranking, standings, place_of_choice):
    chosen = with_standings(ranking, standings)
    wanted = chosen.sites[place_of_choice]
    assert chosen.recommended() == wanted
    config = chosen.steering_config()
    assert (config.sites, config.family) == ((wanted.name,), wanted.family)
    assert chosen.recommended(wanted.family) == wanted
    other = "vector" if wanted.family == "linear" else "linear"
    assert chosen.recommended(other).family == other
    told = replace(chosen, stability=replace(chosen.stability, can_tell=True), score="learnable_share")
    step = next_step(told)
    assert recommends(told)
    assert step is not None
    assert f'SteeringConfig(sites=("{wanted.name}",), family="{wanted.family}"' in step.config
    assert f"--site {wanted.name}" in step.train


def train(place, out, *more) -> int:
    fixed = ("--steps", 30, "--batch-size", 16, "--learning-rate", 0.02, "--max-examples", 100, "--quiet")
    return run("train", place / "model", "--rank", 2, *fixed, "--out", out, *more)


def test_rank_train_and_evaluate_at_the_best_and_at_the_worst_site(place, ranking, tmp_path, capsys):
    worst = [site.name for site in ranking.sites if site.family == "linear"][-1]
    for name, more in (("best", ("--sites-from", place / "ranking.json")), ("worst", ("--site", worst))):
        assert train(place, tmp_path / name, *more) == 0
        assert run(
            "evaluate", place / "model", "--adapter", tmp_path / name, "--max-examples", 100,
            "--out", tmp_path / f"{name}-again", "--quiet",
        ) == 0  # fmt: skip
        trained, evaluated = read_results(tmp_path / name), read_results(tmp_path / f"{name}-again")
        assert trained.task == evaluated.task == ranking.task == "listops"
        assert (trained.test_set, trained.loss) == (evaluated.test_set, evaluated.loss)
    assert f"on listops by learnable_share: {ranking.recommended('linear').name}." in capsys.readouterr().err
    best, other = read_results(tmp_path / "best"), read_results(tmp_path / "worst")
    assert best.sites == (ranking.recommended("linear").name,) != other.sites
    assert best.trainable_parameters > 0
    # Which of the two wins is an experiment's question; that both learned is this one's.
    assert run("evaluate", place / "model", "--max-examples", 100, "--out", tmp_path / "plain", "--quiet") == 0
    assert max(best.loss, other.loss) < read_results(tmp_path / "plain").loss


def test_the_greedy_set_and_a_kind(place, ranking, tmp_path):
    more = ("--sites-from", place / "ranking.json", "--no-likelihoods", "--steps", 2)
    assert train(place, tmp_path / "set", *more, "--sites-which", "set") == 0
    assert set(read_results(tmp_path / "set").sites) == set(ranking.steering_config("set").sites)
    assert train(place, tmp_path / "kind", *more, "--sites-which", "mlp_out") == 0
    assert read_results(tmp_path / "kind").sites == ("0.mlp_out", "1.mlp_out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sites-from", "{ranking.json}", "--site", "mlp_out"], "--site and --sites-from both name sites"),
        (["--sites-from", "{ranking.json}", "--method", "lora"], "'lora' edits no site; leave out --sites-from"),
        (
            ["--sites-from", "{ranking.json}", "--sites-which", "bset"],
            "--sites-which is 'bset'; expected recommended, best",
        ),
        (["--sites-which", "set"], "no ranking is given. Add --sites-from"),
        (["--sites-from", "nowhere.json"], "nowhere.json"),
        (["--data", "own.jsonl", "--task", "listops"], "--data 'own.jsonl' and --task 'listops' exclude each other"),
        (["--data", "own.jsonl", "--data-dir", "d"], "--data 'own.jsonl' and --data-dir 'd' exclude each other"),
        (["--data", "own.jsonl"], "own.jsonl does not exist"),
        (["--task", "listops_bare"], "'listops_bare' is called 'listops' now"),
    ],
)
def test_refused_before_a_model_is_loaded(place, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.setattr("steerscope.experiments.training.train.load_model", lambda *a, **k: pytest.fail("loaded"))
    given = [place / part[1:-1] if part[0] == "{" else part for part in more]
    assert train(place, tmp_path / "run", *given) == 2
    assert message in one_sentence(capsys.readouterr().err)
