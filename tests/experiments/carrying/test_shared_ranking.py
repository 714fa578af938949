"""A ranking whose slices are captured by processes that share a folder."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from steerscope import InputError, RankOptions, rank_sites, wrap_model
from steerscope.analysis.capture import slices
from steerscope.analysis.results import Ranking
from steerscope.experiments.carrying.claims import Claims
from steerscope.experiments.carrying.shard import Shard
from steerscope.experiments.groundwork import shared_ranking as module
from steerscope.experiments.groundwork.shared_ranking import shared_ranking
from tests.analysis.test_slices import examples
from tests.cli.runs import lines, one_sentence, run, save_model, write_jsonl
from tests.tiny import tiny_model, tiny_tokenizer

OPTIONS = RankOptions(max_examples=24, batch_size=4)


def loaded_model(seed=0):
    return wrap_model(tiny_model("llama", seed=seed), tiny_tokenizer())


def untimed(ranking: Ranking) -> Ranking:
    return dataclasses.replace(ranking, timing={})


def test_two_at_the_same_time(tmp_path, monkeypatch):
    """Each captures one slice, one makes the scores, and both have the ranking of one process."""
    expected = rank_sites(loaded_model(), examples("one token"), OPTIONS)
    captured, both = [], threading.Barrier(2)

    def counted(*given, index, **more):
        captured.append(index)
        both.wait(60)
        return slices.capture_slice(*given, index=index, **more)

    monkeypatch.setattr(module, "capture_slice", counted)
    found = {}

    def work(index):
        found[index] = shared_ranking(
            loaded_model(), examples("one token"), OPTIONS, tmp_path / "report", Shard(index, 2)
        )

    threads = [threading.Thread(target=work, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(captured) == [0, 1]
    assert untimed(found[1]) == untimed(found[2]) == untimed(expected)
    assert not list(tmp_path.rglob("*.safetensors")), "slices are of no use any more"


def test_the_slices_of_a_process_that_died_are_captured_by_another(tmp_path):
    with Claims(tmp_path / "slices" / "claims") as dead:
        dead.take("file-slice_1_of_3.safetensors")
    found = shared_ranking(loaded_model(), examples("one token"), OPTIONS, tmp_path, Shard(2, 3))
    assert untimed(found) == untimed(rank_sites(loaded_model(), examples("one token"), OPTIONS))


def test_another_ranking_is_not_shared(tmp_path):
    given = examples("one token")
    shared_ranking(loaded_model(), given, OPTIONS, tmp_path, Shard(1, 1))
    for says, model, data, options, count in [
        ("model", loaded_model(1), given, OPTIONS, 1),
        ("data", loaded_model(), given[1:] + examples("one token", 25)[24:], OPTIONS, 1),
        ("num_probes", loaded_model(), given, dataclasses.replace(OPTIONS, num_probes=1), 1),
        ("number of processes", loaded_model(), given, OPTIONS, 2),
    ]:
        with pytest.raises(InputError, match=f"begun with another {says}. Give the same in every process"):
            shared_ranking(model, data, options, tmp_path, Shard(1, count))


def test_at_the_command_line(tmp_path, capsys):
    save_model(tmp_path / "model")
    write_jsonl(tmp_path / "data.jsonl", lines(90))
    command = ["rank", tmp_path / "model", "--data", tmp_path / "data.jsonl", "--max-examples", 24, "--quiet"]
    command += ["--batch-size", 8]
    assert run(*command, "--shard", "1/2") == 2
    assert "add --out, a folder that all processes see" in one_sentence(capsys.readouterr().err)
    assert run(*command, "--shard", "1/2", "--out", tmp_path / "report") == 0
    assert run(*command, "--shard", "2/2", "--out", tmp_path / "report") == 0  # late: all is done
    assert (tmp_path / "report" / "index.html").exists()
    assert run(*command, "--json", tmp_path / "alone.json") == 0
    one, other = (Ranking.load(tmp_path / name) for name in ("report/ranking.json", "alone.json"))
    other = dataclasses.replace(other, settings=dataclasses.replace(other.settings, command=one.settings.command))
    assert untimed(one) == untimed(other)
