"""One folder per run: ``config.json``, ``results.json``, ``generations.jsonl``, and what training keeps besides.

``config.json`` is written when a run begins and ``results.json`` last, so that a folder with results is complete and
one without is a run in progress or interrupted, which :meth:`RunFolder.reopen` resumes. Every file appears whole or not
at all, and none is ever replaced.

A training command uses it so::

    folder = RunFolder.create(path, config)  # or RunFolder.reopen(path, config)
    ...                                      # checkpoints, the adapter: files of its own in folder.path
    folder.finish(results, generations)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from steerscope.analysis.provenance import changed_versions, differing, knows_data
from steerscope.errors import InputError
from steerscope.experiments.runs.evaluation import Generation
from steerscope.experiments.runs.records import RunConfig, RunResults, require_config
from steerscope.files import create_text, json_text, read_object, told, write_text
from steerscope.installed import package_versions

CONFIG, RESULTS, GENERATIONS = "config.json", "results.json", "generations.jsonl"


class RunFolder:
    """The folder of one run; made by :meth:`create` or :meth:`reopen`.

    Attributes:
        path: Where it is.
        config: What decides the run's outcome.
        note: What a user who resumes it should know, a sentence without its full stop, or nothing.
    """

    def __init__(self, path: Path, config: RunConfig, note: str = "") -> None:
        self.path, self.config, self.note = path, config, note

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> RunFolder:
        """Start a run in a new or empty folder.

        Args:
            path: The folder; made if missing.
            config: What the run is: model, task, method, sites, seed and settings.

        Returns:
            The folder, with the configuration in it.

        Raises:
            InputError: There is something in it, or it cannot be made.
        """
        folder = Path(path)
        with told(f"write a run to {str(folder)!r}"):
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise InputError(
                    f"folder {str(folder)!r} is not empty; a run is never written over another. Name another folder."
                )
            _write_new(folder / CONFIG, asdict(config) | {"versions": package_versions()})
        return cls(folder, config)

    @classmethod
    def reopen(cls, path: str | Path, config: RunConfig) -> RunFolder:
        """Resume an interrupted run.

        Args:
            path: The folder of the run.
            config: What the run should be; it has to equal the one in the folder.

        Returns:
            The folder, with a note where versions of packages have changed since.

        Raises:
            InputError: No run was begun there, or it was begun with another configuration.
        """
        folder = Path(path)
        begun = read_json(folder / CONFIG, "a run that could go on")
        require_config(begun, repr(str(folder / CONFIG)))
        if not isinstance(begun.get("versions", {}), dict):
            raise InputError(f"{str(folder / CONFIG)!r}: versions is no object. Was it changed by hand? Run again.")
        wanted = json.loads(json_text(asdict(config)))
        is_finished, note = (folder / RESULTS).exists(), ""
        settings = begun.get("settings")
        if knows_data(wanted["settings"]) and settings is not None and not knows_data(settings):
            # Written before runs said so: what is done can be read, what is not must not go on with other data.
            if not is_finished:
                raise InputError(
                    f"the run in {str(folder)!r} does not say on which data it was begun: an earlier steerscope wrote "
                    "it. Finish it with that version, or name another folder."
                )
            note = f"the run in {str(folder)!r} does not say which data it used: an earlier steerscope wrote it"
            unknown = {name: wanted["settings"][name] for name in ("data", "recipe") if name in wanted["settings"]}
            begun = begun | {"settings": settings | unknown}
            begun["model"] = begun.get("model", {}) | {"setup": wanted["model"].get("setup", "")}
        if differ := differing(begun, wanted):
            raise InputError(
                f"the run in {str(folder)!r} was begun with other {', '.join(differ)}. Give the same options and data, "
                "or name another folder."
            )
        changed = changed_versions(begun.get("versions", {}), package_versions())
        if changed and not is_finished:
            note = f"the run was begun with other versions ({changed}); its last bits may differ from a whole run's"
        return cls(folder, config, note)

    def withdraw(self) -> None:
        """Take the configuration back, of a run that was refused before it did anything, so that another may begin."""
        (self.path / CONFIG).unlink(missing_ok=True)

    @property
    def is_finished(self) -> bool:
        """Whether results are there."""
        return (self.path / RESULTS).exists()

    def finish(self, results: RunResults, generations: Iterable[Generation]) -> None:
        """Write the generations and then the results, all or nothing.

        Args:
            results: What the run came to.
            generations: What the model answered on the test examples, one each.

        Raises:
            InputError: Results are there already, or are those of another configuration.
        """
        own = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
        differ = sorted(name for name, value in own.items() if getattr(results, name) != value)
        if differ:
            raise InputError(f"the results are of a run with other {', '.join(differ)} than the folder's {CONFIG}.")
        if self.is_finished:
            raise InputError(f"{str(self.path / RESULTS)!r} is there already; a run is never written over another.")
        # Generations of a run that was cut off between the two files may be there; only results make them final.
        lines = "".join(f"{one.to_line()}\n" for one in generations)
        with told(f"write the results of the run in {str(self.path)!r}"):
            write_text(self.path / GENERATIONS, lines)
            _write_new(self.path / RESULTS, results.as_dict())


def read_results(folder: str | Path) -> RunResults:
    """Read the results of a finished run, strictly.

    Returns:
        The results, every field checked.

    Raises:
        InputError: There are none, or a field is missing, of another type, or impossible.
    """
    path = Path(folder) / RESULTS
    values = read_json(path, "a finished run")
    return RunResults.from_dict(values, repr(str(path)))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a file that must hold one JSON object.

    Args:
        path: The file.
        what: What it should be part of, for messages (``"a finished run"``).

    Returns:
        The object.

    Raises:
        InputError: It is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{str(path.parent)!r} is no folder of {what}: it has no {path.name}. Check the path.")
    return read_object(path, what)


def replace_json(path: Path, values: Any) -> None:
    """Write state that an interrupted run resumes from, atomically; unlike results it may be replaced.

    Args:
        path: The file; its folder is made if missing.
        values: Anything that JSON has.
    """
    with told(f"write {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json_text(values))


def _write_new(path: Path, values: Any) -> None:
    """Write a file whole, and refuse to replace one, even if two processes try at once."""
    if not create_text(path, json_text(values)):
        raise InputError(f"{str(path)!r} is there already; a run is never written over another.")
