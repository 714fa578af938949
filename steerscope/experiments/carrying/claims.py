"""Claims on jobs in a folder that several processes share, on one machine or many.

A claim is a file that one process makes with ``O_EXCL``, which local and network file systems do atomically; locks are
not relied on. ``NAME.0`` is the first claim on a job; whoever takes over from a dead process makes ``NAME.1``, and so
on. Claims are never renamed or deleted, so that no two processes can both believe that they hold the last one. A claim
names its owner, whose own file under ``owners`` says host and process, and is touched while it lives: that needs no
space on a full disk. Clocks of machines are not compared: an owner is dead when its file did not change for
:data:`DEAD_AFTER` seconds of the observer's own clock, at once when it was on this machine and its process is gone, and
when it has taken its file away, as every process does that ends by itself.

A finished job's claim says so. One whose result is not seen yet (network file systems may show a file a minute late)
is waited for, as long as for a dead owner, and then taken for lost.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from steerscope.files import json_of, json_text, told, write_text

# Seconds between two signs of life, and without one until others take over.
BEAT, DEAD_AFTER = 10.0, 120.0
_HELD, _DONE = "held", "done"


@dataclass(frozen=True)
class Holder:
    """Who holds a claim: host and process, as far as known."""

    host: str = "an unknown host"
    pid: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Claims:
    """The claims of this process in a folder; a context in which it shows that it lives."""

    def __init__(self, folder: Path, *, dead_after: float = DEAD_AFTER, beat: float = BEAT) -> None:
        self.folder, self.dead_after, self.beat = folder, dead_after, beat
        self.token = secrets.token_hex(8)
        self.holders: dict[str, Holder] = {}
        # By owner or claim: its last change, and since when by our clock it is as it is.
        self._seen: dict[str, tuple[object, float]] = {}
        self._held: dict[str, Path] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        with told(f"share the work in {str(self.folder)!r}"):
            (self.folder / "owners").mkdir(parents=True, exist_ok=True)
        write_text(self._owner(self.token), json_text(_this_process()))
        self._ended.clear()
        self._thread = threading.Thread(target=self._live, name="claims", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):  # what it held and did not finish is free from now on
            self._owner(self.token).unlink()

    def take(self, name: str) -> bool:
        """Try to claim a job.

        Args:
            name: Of the job.

        Returns:
            Whether this process holds it now; if not, :attr:`holders` says who does.

        Raises:
            InputError: The folder cannot be written to.
        """
        turn = 0
        while True:
            path = self.folder / f"{name}.{turn}"
            if self._made(path):
                self._held[name] = path
                self.holders.pop(name, None)
                return True
            state, owner = self._read(path)
            if owner == self.token and name in self._held:
                return True
            if not self._is_free(path, state, owner):
                self.holders[name] = self._holder(owner)
                return False
            turn += 1

    def finish(self, name: str) -> None:
        """Write down that a job of this process is done and kept: four bytes in their place, which need no space."""
        path = self._held.pop(name)
        with suppress(OSError), open(path, "r+b") as file:
            file.write(_DONE.encode())

    # --- parts ---

    def _made(self, path: Path) -> bool:
        with told(f"claim work in {str(self.folder)!r}"):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                return False
            try:
                os.write(handle, f"{_HELD} {self.token}\n".encode())
                os.fsync(handle)
            except OSError:  # nobody has taken a claim over that is younger than a second
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(handle)
        return True

    def _read(self, path: Path) -> tuple[str, str]:
        """Return a claim's state and owner; empty where its maker has not written them (yet)."""
        try:
            words = path.read_text(encoding="utf-8").split()
        except OSError:
            words = []
        return (words[0], words[1]) if len(words) == 2 else ("", "")

    def _is_free(self, path: Path, state: str, owner: str) -> bool:
        """Say whether nobody will finish a claimed job, or its result was lost."""
        if state == _DONE or not owner:
            return self._is_unchanged(path.name, (state, owner))
        try:
            with open(self._owner(owner), "rb") as file:  # opening it asks a network file system for news
                stamp = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return True
        except OSError:
            stamp = -1
        return self._is_unchanged(owner, stamp) or _is_gone(self._record(owner))

    def _is_unchanged(self, what: str, stamp: object) -> bool:
        now = time.monotonic()
        if self._seen.get(what, (None, 0.0))[0] != stamp:
            self._seen[what] = stamp, now
        return now - self._seen[what][1] > self.dead_after

    def _holder(self, owner: str) -> Holder:
        record = self._record(owner) if owner else {}
        return Holder(str(record.get("host", Holder.host)), int(record.get("pid", 0)))

    def _record(self, owner: str) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json_of(self._owner(owner))
            return found if isinstance(found, dict) else {}
        return {}

    def _owner(self, token: str) -> Path:
        return self.folder / "owners" / f"{token}.json"

    def _live(self) -> None:
        while not self._ended.wait(self.beat):
            with suppress(OSError):
                now = time.time_ns()
                os.utime(self._owner(self.token), ns=(now, now))


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "began": _began(pid)}


def _machine() -> str:
    """Return what tells machines, and containers that number their processes anew, apart; empty if nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """Return when a process began, in the system's ticks; empty where it is gone, or a zombie."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[19]


def _is_gone(record: dict[str, Any]) -> bool:
    """Say whether an owner ran on this machine and runs no more; False where that cannot be known."""
    machine = _machine()
    return bool(machine) and record.get("machine") == machine and _began(int(record["pid"])) != record.get("began")
