"""Progress in a log: what is said when, and how long a stage will take yet."""

from __future__ import annotations

import pytest

from steerscope.analysis.stopwatch import training_progress
from steerscope.cli.progress import STAGES, Log, Remaining, time_words


@pytest.fixture
def log(capsys):
    """Return what makes lines: calls of a log at given seconds."""

    def lines(*calls: tuple[float, str, int, int]) -> list[str]:
        now = [0.0]
        show = Log(lambda: now[0])
        for at, stage, done, total in calls:
            now[0] = at
            show(stage, done, total)
        return capsys.readouterr().err.splitlines()

    return lines


def test_what_is_left_is_said_at_every_quarter(log):
    assert log((0, "capture", 0, 8), (50, "capture", 1, 8), (100, "capture", 2, 8), (400, "capture", 8, 8)) == [
        "forward and backward passes",
        "forward and backward passes 12%, about 6 min left",
        "forward and backward passes 25%, about 5 min left",
        "forward and backward passes, done",
    ]


def test_short_stages_make_a_line_per_quarter_and_say_nothing_of_seconds(log):
    assert log(*((0.1 * k, "score", k, 100) for k in range(101))) == [
        "scoring sites",
        "scoring sites 25%",
        "scoring sites 50%",
        "scoring sites 75%",
        "scoring sites, done",
    ]


def test_hours_do_not_make_hundreds_of_lines(log):
    said = log(*((10 * k, "train", k, 2000) for k in range(2001)))  # 5.6 hours
    assert 20 < len(said) < 70
    assert all("left" in line for line in said[1:-1])
    assert any("about 4.2 h left" in line for line in said)


def test_runs_of_a_sweep_are_one_stage_and_what_was_done_before_counts_for_no_speed(log):
    calls = [
        (0, "train: 3.mlp_out", 60, 100),
        (40, "train: 3.mlp_out", 70, 100),
        (80, "train: 4.mlp_out", 80, 100),
    ]
    assert log(*calls) == [
        "training: 3.mlp_out 60%",
        "training: 3.mlp_out 70%, about 2 min left",
        "training: 4.mlp_out 80%, about 80 s left",
    ]


def test_an_estimate_runs_down_between_two_calls():
    remaining = Remaining(0.0, 0, 0.0)
    assert remaining.now(5.0) is None
    remaining.see(1, 4, 10.0)
    assert remaining.now(10.0) == pytest.approx(30.0)
    assert remaining.now(25.0) == pytest.approx(15.0)
    assert remaining.now(99.0) == 0.0


def test_long_names_of_runs_are_cut():
    told = []
    tell = training_progress(lambda *call: told.append(call))
    tell("0.mlp_out, " * 20, 1, 2)
    tell("", 2, 2)
    assert told[0][0].startswith("train: 0.mlp_out")
    assert len(told[0][0]) == len("train: ") + 60
    assert told[1] == ("train", 2, 2)
    assert training_progress(None) is None


def test_time_in_words():
    assert [time_words(seconds) for seconds in (1, 89, 91, 5399, 5401)] == ["10 s", "90 s", "2 min", "90 min", "1.5 h"]


def test_stages_have_names():
    assert all(name and ":" not in stage for stage, name in STAGES.items())
