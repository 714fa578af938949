"""Jobs on a Ray cluster: a process per place that it has, each of which loads the model once.

Actors and not tasks, because Ray ends the process of a task with a GPU after every task, and a model would be loaded
for every pack. An actor that is lost, with its node or alone, is replaced where there is room, and its job is given to
another; results are kept by the driver, so what was finished stays finished when the driver itself is stopped.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from steerscope.errors import InputError, reason_of
from steerscope.experiments.carrying.jobs import Job, Open, OutOfTime, Stage
from steerscope.installed import package_versions, require

# How often a job is begun again on another process before the work is given up.
TRIES = 4
# Seconds between two looks at the cluster and the clock.
LOOK = 1.0
# Seconds in which an address has to answer.
PATIENCE = 10.0


class RayActors:
    """A carrier on a Ray cluster; a context in which processes there have the model in memory.

    A cluster that this process is connected to already is used, and left as it is.

    Attributes:
        make: Called in every process there; returns what does a job, from what :meth:`Job.sent` returned. Pickled.
        address: Of the cluster; None for one that is begun on this machine and ends with the context.
        num_cpus: CPUs of one process.
        num_gpus: GPUs of one process; may be a fraction.
    """

    def __init__(
        self, make: Callable[[], Callable[[Any], Any]], *, address: str | None, num_cpus: float, num_gpus: float
    ) -> None:
        require("ray", "[[engine='ray']]")
        import ray

        self.ray, self.make, self.address = ray, make, address
        self.num_cpus, self.num_gpus = num_cpus, num_gpus
        self._is_ours = False
        self._idle: list[Any] = []
        # What is in progress: the process, and its job; None while it loads the model.
        self._running: dict[Any, tuple[Any, Job | None]] = {}
        self._lost: Counter[str] = Counter()

    def __enter__(self) -> RayActors:
        ray = self.ray
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            here = {"include_dashboard": False} if self.address is None else {}
            try:
                _require_answer(self.address)
                ray.init(
                    address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here
                )  # fmt: skip
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"[[address]] is {self.address!r}, and there is no Ray cluster that answers "
                    f"({reason_of(error, 200)}). Start one with 'ray start --head', or leave it out for one on this "
                    "machine."
                ) from error
            self._is_ours = True
        try:
            self._made = ray.put(self.make)
        except Exception as error:  # whatever an object raises that cannot be pickled
            self.__exit__()
            why = reason_of(error.__cause__ or error, 200)
            raise InputError(
                f"the model in memory or the task cannot be sent to other machines ({why}). Give the model by its "
                "name, and examples as a file."
            ) from error
        self._class = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_restarts=0)(_worker())
        if not self._places():
            has = [f"{node['Resources'].get('CPU', 0):g} CPUs and {node['Resources'].get('GPU', 0):g} GPUs"
                   for node in ray.nodes() if node["Alive"]]  # fmt: skip
            self.__exit__()
            raise InputError(
                f"a process needs {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs, and the nodes of the Ray cluster "
                f"have {', '.join(has) or 'none'}. Ask for less with [[num_cpus]] and [[num_gpus]]."
            )
        return self

    def __exit__(self, *error: object) -> None:
        for actor in (*self._idle, *(actor for actor, _ in self._running.values())):
            self.ray.kill(actor)
        self._idle, self._running = [], {}
        if self._is_ours:
            self.ray.shutdown()
            self._is_ours = False

    def carry(self, phases: Sequence[Sequence[Stage]], deadline: float = math.inf) -> None:
        """Have all jobs done; see :meth:`~steerscope.experiments.carrying.jobs.Carrier.carry`.

        Args:
            phases: Stages of one urgency each, the most urgent first.
            deadline: Of ``time.monotonic()``.

        Raises:
            OutOfTime: The deadline passed; what was finished is kept.
        """
        work = Open(phases)
        while jobs := [job for own in work.jobs() for job in own]:
            in_progress = {job.name for _, job in self._running.values() if job is not None}
            if time.monotonic() <= deadline:
                waiting = [job for job in jobs if job.name not in in_progress]
                self._give([job for job in waiting if not job.stays()])
                here = next((job for job in waiting if job.stays()), None)
                # It holds up the driver, and so comes when nothing is to be taken from others. One that is starting may
                # do so for ever, where a node was lost.
                if here is not None and not in_progress:
                    here.do()
                    work.did(here)
            elif not in_progress:
                raise OutOfTime
            for ref in self._ended():
                self._take(ref, work)

    def _give(self, waiting: Sequence[Job]) -> None:
        """Give jobs to idle processes, and start more processes where there is room and need."""
        left = list(waiting)
        while left and self._idle:
            actor, job = self._idle.pop(), left.pop(0)
            self._running[actor.do.remote(job.sent())] = actor, job
        starting = sum(job is None for _, job in self._running.values())
        room = self._places() - len(self._running) - len(self._idle)
        for _ in range(min(room, len(left) - starting)):
            actor = self._class.remote()
            self._running[actor.start.remote(self._made, package_versions())] = actor, None

    def _ended(self) -> list[Any]:
        if not self._running:
            return []
        found: list[Any] = self.ray.wait(list(self._running), num_returns=1, timeout=LOOK)[0]
        return found

    def _take(self, ref: Any, work: Open) -> None:
        """Keep what a job came to, or see to it that it is done again."""
        actor, job = self._running.pop(ref)
        errors = self.ray.exceptions
        try:
            result = self.ray.get(ref)
        except errors.RayTaskError as error:
            self.ray.kill(actor)
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise
        except errors.RayError as error:
            self.ray.kill(actor)
            what = "loading the model" if job is None else job.name
            self._lost[what] += 1
            if self._lost[what] >= TRIES:
                raise InputError(
                    f"{what} was begun {TRIES} times on the Ray cluster, and each time its process was lost "
                    f"({reason_of(error, 200)}). What is finished is kept. Is there too little memory?"
                ) from error
            return
        self._idle.append(actor)
        if job is not None:
            job.take(result)
            work.did(job)

    def _places(self) -> int:
        """Return how many processes the nodes that are there have room for."""
        count = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                needs = {"CPU": self.num_cpus, "GPU": self.num_gpus}
                count += min((int(has.get(name, 0) / need + 1e-9) for name, need in needs.items() if need), default=1)
        return count


def _require_answer(address: str | None) -> None:
    """Try whether anything listens at HOST:PORT; Ray itself goes on trying for minutes.

    Raises:
        OSError: Nothing does.
    """
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _worker() -> type:
    """Return the class of a process on the cluster; made here, so that it can be sent by value."""

    class Worker:
        def start(self, make: Callable[[], Callable[[Any], Any]], versions: dict[str, str]) -> None:
            found = package_versions()
            if differ := [name for name in versions if versions[name] != found.get(name)]:
                name = differ[0]
                raise InputError(
                    f"a node of the Ray cluster has {name} {found.get(name)}, and this machine {versions[name]}: their "
                    "numbers would differ. Install the same versions everywhere."
                )
            self.work = make()

        def do(self, sent: Any) -> Any:
            return self.work(sent)

    return Worker
