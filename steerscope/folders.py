"""What a folder is for: nothing that steerscope writes may change it for others.

An adapter's configuration beside a model's makes transformers take the folder for an adapter, a report over a
validation loses it: so a folder that holds one sort of thing gets nothing of another. All that writes asks here first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from steerscope.errors import InputError
from steerscope.files import UNFINISHED, json_of, told, write_text


class Kind(StrEnum):
    """What a folder may hold, in the words of messages."""

    MODEL = "a model"
    PEFT = "an adapter of PEFT"
    STEERING = "a steering adapter"
    WEIGHTS = "changed weights of a model"
    OTHER_ADAPTER = "an adapter of another program"
    RUN = "a run of train or evaluate"
    RANKING = "the report of a ranking"
    VALIDATION = "a validation"
    SWEEP = "a sweep over sites"
    SEARCH = "a search"
    VERIFICATION = "the report of a verification"
    COMPARISON = "a comparison of runs"
    JUDGEMENTS = "judgements of scores"
    DATA = "data"


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Where a run and a search keep what they trained.
ADAPTER_FOLDER = "adapter"
CARD_NAME = "README.md"
# By it a model card is known that may be replaced; a text of the user's own stays.
CARD_MARK = "<!-- Written by steerscope; remove this line to keep your own changes. -->"
STEERING_FORMAT, WEIGHTS_FORMAT = "steerscope steering", "steerscope weights"

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json", "*.gguf", "*.onnx",
            "tf_model.h5", "flax_model.msgpack", "consolidated*.pth")  # fmt: skip
_MODEL = ("config.json", "generation_config.json", "model_index.json", "preprocessor_config.json", "params.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
              "special_tokens_map.json", "added_tokens.json", "chat_template.*")  # fmt: skip
_DATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "*.arrow", "*.parquet",
         "*.jsonl", "*.jsonl.gz")  # fmt: skip
# What becomes rows or weights for a program that looks for files of any name: load_dataset(folder) takes the ending
# that most of them have, so one JSON file of ours can change what it reads.
_PACKED = ("", ".gz", ".bz2", ".xz", ".zst", ".zip")
_LOOSE_DATA = (*(f"*.{end}{pack}" for end in ("csv", "tsv", "json", "txt", "xml") for pack in _PACKED),
               "*.ndjson", "*.jsonl.*", "*.h5", "*.hdf5", "*.npy", "*.npz", "*.zip", "*.tar", "*.tar.gz")  # fmt: skip
_LOOSE_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack")
# Texts about a folder, and what the Trainer writes beside what it trained.
_BESIDE = ("requirements*.txt", "license*", "readme*", "notice*", "*_results.json", "trainer_state.json",
           "joint_history.json")  # fmt: skip
# Names that other programs read: a JSON file of ours under one of them would be taken for theirs.
_TAKEN_NAMES = (*_WEIGHTS, *_MODEL, *_TOKENIZER, *_DATA, ADAPTER_CONFIG, "adapter_model*", "trainer_state.json")
_GENERATIONS = "generations.jsonl"
_RESULTS = ("config.json", "results.json", "evaluation.json", "ranking.json", "validation.json", "verify.json",
            "comparison.json", "sweep.json", "table.json", "base.json", "packs_*.json", "scales.json", "search.json",
            "begun.json", "judgements.json")  # fmt: skip
_TRAINER = ("trainer_state.json", "training_args.bin")


def adapter_in(folder: Path) -> Path:
    """Return the folder of an adapter: of a run or a search, the one in which it keeps what it trained.

    Args:
        folder: An adapter's, or a run's.

    Returns:
        The folder itself where it is an adapter's, or holds none.
    """
    within = folder / ADAPTER_FOLDER
    return within if (within / ADAPTER_CONFIG).is_file() and not (folder / ADAPTER_CONFIG).exists() else folder


def require_folder_for(folder: str | Path, kind: Kind, *, also: Iterable[Kind] = ()) -> None:
    """Refuse to write one sort of thing into a folder that holds another; a folder that is not there is free.

    A tokenizer alone does no harm: it is saved beside adapters, before them or after.

    Args:
        folder: Where something is about to be written.
        kind: What.
        also: Sorts that it may be written over or beside.

    Raises:
        InputError: The folder holds another sort of thing, or cannot be listed; nothing was touched.
    """
    place = Path(folder)
    with told(f"look into {str(folder)!r}"):
        if not place.is_dir():
            return
        found = list(_held(place))
        own = {kind, *also}
        # Beside an earlier result of the same sort they came later or were there with it: nothing changes for them.
        if not any(other in own for other, _ in found):
            found += _loose(place)
    for other, file in found:
        if other not in own:
            raise InputError(
                f"folder {str(folder)!r} holds {other} ({file}); {kind} in it would change what it is for others, so "
                "nothing was touched. Name another folder, for example a new one inside it."
            )


def may_write_card(card: Path) -> bool:
    """Whether a model card may be replaced: there is none, or this package wrote it."""
    try:
        return CARD_MARK in card.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def as_folder(given: object) -> Path:
    """Return a path that a caller gave for a folder.

    Raises:
        InputError: It is none.
    """
    if not isinstance(given, str | os.PathLike) or not (text := os.fspath(given)) or "\0" in str(text):
        raise InputError(f"got {given!r} for a folder; expected its path, a string or pathlib.Path: 'my-adapter'.")
    return Path(given)


def require_names_for(names: Iterable[str], where: str, kind: Kind) -> None:
    """Refuse to upload an adapter to a repository whose files, by their names alone, are another sort of thing.

    Args:
        names: Paths of the files of the repository.
        where: Name of the repository, for messages.
        kind: What is to be uploaded.

    Raises:
        InputError: There is a model or data in it.
    """
    there = list(names)
    found = [
        (other, name)
        for other, patterns in ((Kind.MODEL, (*_WEIGHTS, *_MODEL)), (Kind.DATA, _DATA))
        for name in there
        if _matches(name.rpartition("/")[2], patterns)
    ]
    if ADAPTER_CONFIG not in there:
        found += _loose_names(there)
    for other, name in found[:1]:
        raise InputError(
            f"{where} holds {other} ({name}); {kind} in it would change what it is for others, so nothing was "
            "uploaded. Name another repository."
        )


def require_json_file(path: Path, sign: str) -> None:
    """Refuse to write a result as JSON where another file is, or where other programs would look for one of theirs.

    Args:
        path: The file.
        sign: A field by which an earlier result of the same sort, which may be replaced, is known.

    Raises:
        InputError: The name is one that other programs read, or the file holds something else.
    """
    if any(fnmatch(path.name, pattern) for pattern in _TAKEN_NAMES):
        raise InputError(
            f"a result cannot be written to {str(path)!r}: other programs read files of that name. Name another file, "
            "result.json for example."
        )
    with told(f"look at {str(path)!r}"):
        if not path.is_file() or path.stat().st_size == 0:
            return
    values = _json(path)
    if not isinstance(values, dict) or "schema_version" not in values or sign not in values:
        raise InputError(
            f"the file {str(path)!r} is there and holds something else than a result of this sort, so it was not "
            "touched. Name another file, or delete it first."
        )


def write_result(path: str | Path, text: str, sign: str) -> None:
    """Write a result's JSON, whole or not at all; see :func:`require_json_file`.

    Args:
        path: The file.
        text: The JSON text.
        sign: Name of a field that tells such a result from other JSON files.

    Raises:
        InputError: Another file is there, or it cannot be written.
    """
    require_json_file(Path(path), sign)
    write_text(Path(path), text + "\n")


def _held(folder: Path) -> Iterator[tuple[Kind, str]]:
    """Yield the sorts of things in a folder, each with the file that shows it."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(UNFINISHED)}
    config = _json(folder / "config.json") if "config.json" in names else None
    has_results = "results.json" in names and _GENERATIONS in names
    # A configuration that was cut off is a run's if a run's results are beside it.
    is_run = has_results or (isinstance(config, dict) and {"task", "method"} <= set(config))
    if is_run:
        yield Kind.RUN, "results.json" if has_results else "config.json"
    if "evaluation.json" in names and _GENERATIONS in names:
        yield Kind.RUN, "evaluation.json"
    if ADAPTER_CONFIG in names:
        yield _adapter(_json(folder / ADAPTER_CONFIG)), ADAPTER_CONFIG
    # The Trainer keeps the parameters of a model that is not transformers' own as model.safetensors, without a
    # configuration: nobody can load them as a model.
    of_trainer = names & set(_TRAINER) and "config.json" not in names
    for name in sorted(names):
        if name == "config.json" and is_run:
            continue
        if (_matches(name, _WEIGHTS) and not of_trainer) or name in _MODEL:
            yield Kind.MODEL, name
        elif _matches(name, _DATA):
            yield Kind.DATA, name
    if "sweep.json" in names or _is_site_table(folder / "table.json"):
        yield Kind.SWEEP, "sweep.json" if "sweep.json" in names else "table.json"
    elif "begun.json" in names or "search.json" in names:
        yield Kind.SEARCH, "search.json" if "search.json" in names else "begun.json"
    elif "validation.json" in names or _has_stored_runs(folder):
        yield Kind.VALIDATION, "validation.json" if "validation.json" in names else "runs"
    elif "ranking.json" in names:
        yield Kind.RANKING, "ranking.json"
    if "verify.json" in names:
        yield Kind.VERIFICATION, "verify.json"
    if "comparison.json" in names:
        yield Kind.COMPARISON, "comparison.json"
    if "judgements.json" in names:
        yield Kind.JUDGEMENTS, "judgements.json"


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return name not in (ADAPTER_WEIGHTS, _GENERATIONS) and any(fnmatch(name, pattern) for pattern in patterns)


def _loose(folder: Path) -> Iterator[tuple[Kind, str]]:
    """Yield the files in a folder that are data or weights by their ending alone, unless this package wrote them."""
    files = (path.name for path in folder.iterdir() if not path.name.startswith(UNFINISHED) and path.is_file())
    names = sorted(files)
    for kind, name in _loose_names(names):
        if not _is_ours(folder / name):
            yield kind, name


def _loose_names(names: Iterable[str]) -> Iterator[tuple[Kind, str]]:
    all_names = list(names)
    of_trainer = set(all_names) & set(_TRAINER)
    for name in all_names:
        low = name.rpartition("/")[2].lower()
        if any(fnmatch(low, pattern) for pattern in (*_TOKENIZER, *_BESIDE, ADAPTER_CONFIG, _GENERATIONS)):
            continue
        if any(fnmatch(low, pattern) for pattern in _LOOSE_WEIGHTS) and not of_trainer and low != "adapter_model.bin":
            yield Kind.MODEL, name
        elif any(fnmatch(low, pattern) for pattern in _LOOSE_DATA):
            yield Kind.DATA, name


def _is_ours(path: Path) -> bool:
    """Whether a JSON file is a result of this package, by its content, or part of one, by its name."""
    values = _json(path) if path.suffix == ".json" else None
    is_named = any(fnmatch(path.name, name) for name in _RESULTS)
    return is_named or (isinstance(values, dict) and "schema_version" in values)


def _has_stored_runs(folder: Path) -> bool:
    """Whether the runs of a validation are there, which keeps them as files and not as folders."""
    return any(path.is_file() for path in (folder / "runs").glob("*.json"))


def _is_site_table(path: Path) -> bool:
    values = _json(path) if path.is_file() else None
    return isinstance(values, dict) and {"schema_version", "runs"} <= set(values)


def _adapter(config: Any) -> Kind:
    told_format = config.get("format") if isinstance(config, dict) else None
    if told_format in (STEERING_FORMAT, WEIGHTS_FORMAT):
        return Kind.STEERING if told_format == STEERING_FORMAT else Kind.WEIGHTS
    return Kind.PEFT if isinstance(config, dict) and "peft_type" in config else Kind.OTHER_ADAPTER


def _json(path: Path) -> Any:
    """Return what a JSON file holds, or ``None`` where it is none."""
    with suppress(OSError, ValueError):
        return json_of(path)
    return None
