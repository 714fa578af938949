"""Bundles of options: every field is an option of the command, which gets the bundle back."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from steerscope.cli.bundles import Loading, flat
from steerscope.cli.options import Device, Dtype, TaskName
from steerscope.option_types import LOADING


@dataclass(frozen=True)
class _Own(Loading):
    dtype: Dtype = "float64"


def _command(first: int, *, where: _Own, last: Device = "mps", task: TaskName = None) -> tuple[int, _Own, str]:
    return first, where, last


def test_a_commands_options_are_its_bundles_fields_in_their_place() -> None:
    taken = inspect.signature(flat(_command)).parameters
    assert list(taken) == ["first", "task", *LOADING, "last"]  # by panels
    assert taken["dtype"].default == "float64"
    assert taken["device"].annotation == taken["last"].annotation == Device
    given = flat(_command)(first=3, device="cuda", dtype="bf16", revision=None, trust_remote_code=True, last="cpu")
    assert given == (3, _Own("cuda", "bf16", None, True), "cpu")
