"""Claims: one holder at a time, whoever dies when; and which shard a process is."""

from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest

from steerscope import InputError
from steerscope.experiments.carrying.claims import Claims
from steerscope.experiments.carrying.jobs import InProcess, Open
from steerscope.experiments.carrying.shard import Shard, chosen_shard

SOON = 0.2


def owners(folder):
    return sorted((folder / "owners").iterdir())


def test_a_job_has_one_holder(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("a")
        assert not other.take("a")
        assert other.take("b")
        assert not one.take("b")
        assert other.holders["a"].pid == os.getpid()
        one.finish("a")
        assert not other.take("a"), "a finished job is nobody's, until its result is seen"
    assert owners(tmp_path) == []


def test_what_a_process_leaves_unfinished_is_free_when_it_ends(tmp_path):
    with Claims(tmp_path) as one:
        assert one.take("a")
        with Claims(tmp_path) as other:
            assert not other.take("a")
            one.__exit__(None, None, None)
            assert other.take("a")
    with Claims(tmp_path) as third:
        assert third.take("a")
        assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.0", "a.1", "a.2"]


def test_a_process_of_this_machine_that_is_gone_is_seen_at_once(tmp_path):
    def die():
        Claims(tmp_path).__enter__().take("a")
        os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert len(owners(tmp_path)) == 1
    with Claims(tmp_path) as other:
        assert other.take("a")


def elsewhere(folder, claims: Claims) -> None:
    """Make the owner of some claims one on another machine, which nobody can ask about."""
    path = folder / "owners" / f"{claims.token}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another", "host": "node7"}))


def test_another_machine_is_dead_when_it_shows_no_life_by_our_clock(tmp_path):
    with Claims(tmp_path, beat=1000) as silent, Claims(tmp_path, dead_after=SOON) as other:
        silent.take("a")
        elsewhere(tmp_path, silent)
        os.utime(owners(tmp_path)[0], (0, 0))  # its clock is fifty years slow
        os.utime(owners(tmp_path)[1], (0, 0))
        assert not other.take("a")
        assert str(other.holders["a"]) == f"process {os.getpid()} on node7"
        time.sleep(2 * SOON)
        assert other.take("a")


def test_another_machine_that_shows_life_keeps_its_claim(tmp_path):
    with Claims(tmp_path, beat=SOON / 8) as alive, Claims(tmp_path, dead_after=SOON) as other:
        alive.take("a")
        elsewhere(tmp_path, alive)
        for _ in range(8):
            assert not other.take("a")
            time.sleep(SOON / 2)


@pytest.mark.parametrize("state", ["", "held", "held nobody-that-was-ever-there"])
def test_a_claim_that_was_cut_off_or_has_no_owner(tmp_path, state):
    (tmp_path / "a.0").write_text(state)
    with Claims(tmp_path, dead_after=SOON) as one:
        if len(state.split()) < 2:
            assert not one.take("a"), "its maker may be about to write it"
            time.sleep(2 * SOON)
        assert one.take("a")


def test_two_who_see_the_same_dead_owner_do_not_both_take_over(tmp_path):
    (tmp_path / "a.0").write_text("held nobody")
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert [one.take("a"), other.take("a")] == [True, False]


def test_a_result_that_was_lost_is_made_again_after_a_while(tmp_path):
    with Claims(tmp_path) as one:
        one.take("a")
        one.finish("a")
    with Claims(tmp_path, dead_after=SOON) as other:
        assert not other.take("a")
        time.sleep(2 * SOON)
        assert other.take("a")


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot share the work in"):
        Claims(tmp_path / "file" / "claims").__enter__()


# --- which shard ---------------------------------------------------------------------------------------------------

TORCHRUN, SLURM = {"RANK": "1", "WORLD_SIZE": "4"}, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3"}


@pytest.mark.parametrize(
    ("told", "environment", "expected"),
    [
        (None, TORCHRUN, None),
        ("none", TORCHRUN, None),
        ("auto", {}, None),
        ("auto", TORCHRUN, Shard(2, 4)),
        ("auto", {"RANK": "0", "WORLD_SIZE": "1"}, None),
        ("auto", SLURM | TORCHRUN, Shard(2, 4)),
        ("3/5", SLURM | TORCHRUN, Shard(3, 5)),
        ("1/1", {}, Shard(1, 1)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2"}, Shard(3, 3)),
        ("auto", SLURM, Shard(2, 3)),
        ("auto", {"RANK": "", "WORLD_SIZE": ""} | SLURM, Shard(2, 3)),
    ],
)
def test_what_is_told_wins_over_torchrun_and_that_over_slurm(told, environment, expected):
    assert chosen_shard(told, environment) == expected


@pytest.mark.parametrize("told", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", "", "1.0/4"])
def test_no_shard(told):
    with pytest.raises(InputError, match=r"shard is .*; expected i/n"):
        chosen_shard(told, {})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "1"}, "RANK=1 and no WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no RANK"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "a rank from 0 to 3"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, "RANK='one'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "no SLURM_ARRAY_TASK_COUNT"),
        (SLURM | {"SLURM_ARRAY_TASK_MIN": "8"}, "expected those of a job array"),
        (SLURM | {"SLURM_ARRAY_TASK_COUNT": "0"}, "expected those of a job array"),
    ],
)
def test_an_environment_that_cannot_be_right(environment, says):
    with pytest.raises(InputError, match=says) as caught:
        chosen_shard("auto", environment)
    assert "Give shard as i/n, or 'none'" in str(caught.value)


# --- stages --------------------------------------------------------------------------------------------------------


class Note:
    """A job that is done when its name is in a list."""

    def __init__(self, name, done):
        self.name, self.kept, self.skipped = name, done, 0

    def is_done(self):
        return self.name in self.kept

    def do(self):
        self.kept.append(self.name)

    def skip(self):
        self.skipped += 1


def test_stages_go_on_when_their_jobs_are_done_and_wait_for_others():
    kept, jobs = [], {}

    def job(name):
        return jobs.setdefault(name, Note(name, kept))

    def first():
        yield [job("a"), job("b")]
        yield [job("c")]

    def second():
        while "a" not in kept:
            yield ()
        yield [job("d"), job("c")]

    work = Open([[first()], [second()]])
    assert [[one.name for one in own] for own in work.jobs()] == [["a", "b"]]
    kept.append("a")
    assert [[one.name for one in own] for own in work.jobs()] == [["b"], ["d", "c"]]
    job("b").do()
    work.did(job("b"))
    assert [[one.name for one in own] for own in work.jobs()] == [["c"], ["d"]]
    kept.extend("cd")
    assert work.jobs() == []
    assert (job("a").skipped, job("b").skipped, job("d").skipped) == (1, 0, 1)


def test_stages_that_wait_for_each_other_are_an_error():
    def never():
        while True:
            yield ()

    with pytest.raises(RuntimeError, match="wait for each other"):
        Open([[never()]]).jobs()
    with pytest.raises(RuntimeError, match="after it"):
        InProcess().carry([[never()]])
