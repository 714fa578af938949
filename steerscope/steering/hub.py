"""Adapters on the Hugging Face hub: the files of :mod:`steerscope.steering.saving`, and nothing else, up and down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from steerscope.errors import InputError, reason_of
from steerscope.folders import CARD_NAME, Kind, adapter_in, as_folder, may_write_card, require_names_for
from steerscope.steering.beneath import LORA_FOLDER
from steerscope.steering.peft_files import CONFIG_NAME, WEIGHTS_NAME

# No other file of a repository is fetched: nothing pickled, no code.
_OF_ONE = (CONFIG_NAME, WEIGHTS_NAME, f"{LORA_FOLDER}/*.json", f"{LORA_FOLDER}/*.safetensors")
FILES = (*_OF_ONE, *(f"*/{name}" for name in _OF_ONE))  # adapters of other names are in folders of theirs
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# The hub's client raises its transport's errors as they are: the base class of its own is their base class too.
_TRANSPORT = HfHubHTTPError.__mro__[1]
_ERRORS: tuple[type[BaseException], ...] = (OSError, HFValidationError, _TRANSPORT)


def local_folder(
    place: str | Path, revision: str | None, token: str | bool | None = None, subfolder: str | None = None
) -> Path:
    """Return the folder of an adapter: the one given, or a download of the repository of that name.

    Args:
        place: A folder, or the name of a repository (``owner/name``).
        revision: Branch, tag or commit of the repository.
        token: Of the account; None for the one that is logged in.
        subfolder: Name of an adapter in a folder of its own there.

    Returns:
        A folder on this machine, for a repository one in the hub's cache.

    Raises:
        InputError: There is no such folder or repository, or a revision of a local folder was asked for.
    """
    folder = as_folder(place)
    if folder.exists() or not _REPOSITORY.fullmatch(str(place)):
        if revision is not None:
            raise InputError(
                f"revision is {revision!r}, but {str(place)!r} is a folder, which has none. Leave it out, or name a "
                "repository ('owner/name')."
            )
        return adapter_in(folder) if subfolder is None else folder / subfolder
    with _told(f"cannot get an adapter from {str(place)!r}, which is no folder here, so a repository on the hub"):
        found = huggingface_hub.snapshot_download(
            str(place), revision=revision, token=token, allow_patterns=list(FILES)
        )
        return Path(found) if subfolder is None else Path(found) / subfolder


def push(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    commit_message: str | None,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Upload what ``save`` writes to a folder; return the address of the commit.

    Args:
        save: Writes the adapter to the folder that it is called with.
        repo_id: Name of the repository (``owner/name``); created where it does not exist.
        commit_message: Title of the commit, or None for a default.
        private: Whether a new repository is private; None for the account's default.
        token: Of the account; None for the one that is logged in.
        revision: Branch to commit to, or None for the main one.
        create_pr: Whether to open a pull request instead of committing.

    Returns:
        The commit's address on the hub.

    Raises:
        InputError: The hub cannot be reached or refuses, or the repository holds a model or data.
    """
    with TemporaryDirectory() as folder, _told(f"cannot upload the adapter to {repo_id!r}"):
        save(Path(folder))
        huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
        there = huggingface_hub.list_repo_files(repo_id, token=token, revision=revision)
        require_names_for(there, f"repository {repo_id!r}", Kind.STEERING)
        written = [path.relative_to(folder).as_posix() for path in Path(folder).rglob(CARD_NAME)]

        def may_write(card: str) -> bool:
            if card not in there:
                return True
            return may_write_card(Path(huggingface_hub.hf_hub_download(repo_id, card, revision=revision, token=token)))

        cards = [card for card in written if may_write(card)]
        commit = huggingface_hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload steering adapter",
            token=token,
            revision=revision,
            create_pr=create_pr,
            allow_patterns=[*FILES, *cards],
        )
    return str(commit)


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise InputError(f"{what} ({reason_of(error)}). Check the name, the connection and `hf auth login`.") from error
