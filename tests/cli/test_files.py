"""What the file system refuses ends in one sentence and exit code 2, and leaves what was there."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.files import alone_in, create_text, json_of, read_text, replace_file, write_text, written_aside
from tests.cli.runs import lines, one_sentence, run, save_model, write_jsonl
from tests.experiments.training.tiny_runs import make_place
from tests.models.test_load import gguf_file


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_place(folder)
    save_model(folder / "tiny")
    write_jsonl(folder / "data.jsonl", lines(60))
    gguf_file(folder / "tiny.gguf")
    return folder


def refusal(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    return one_sentence(capsys.readouterr().err)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def no_file_larger_than(count: int):
    """Let every write beyond so many bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- the cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["file", "file/below", "link", "x" * 300])
def test_a_cache_that_cannot_be_written_to(place, tmp_path, capsys, monkeypatch, where):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / where))
    said = refusal(capsys, "sites", place / "tiny.gguf")
    assert "cannot keep the converted copy of tiny.gguf in" in said
    assert "Set the environment variable STEERSCOPE_CACHE to a folder that can be written to" in said


def test_a_full_disk_leaves_no_half_of_a_converted_model(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / "cache"))
    with no_file_larger_than(1000):
        said = refusal(capsys, "sites", place / "tiny.gguf")
    assert "STEERSCOPE_CACHE" in said
    assert list((tmp_path / "cache").iterdir()) == []
    assert run("sites", place / "tiny.gguf") == 0


def test_remains_in_the_cache_are_made_anew(place, tmp_path, monkeypatch, capsys):
    """Of a copy whose configuration was deleted, for example."""
    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / "cache"))
    assert run("sites", place / "tiny.gguf") == 0
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "config.json").unlink()
    assert run("sites", place / "tiny.gguf") == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_several_conversions_at_once(place, tmp_path, monkeypatch):
    from steerscope.models.bundled import converted_gguf

    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / "cache"))
    code = "import sys; from pathlib import Path; from steerscope.models.bundled import converted_gguf as c; "
    code += "print(c(Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(place / "tiny.gguf")]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    own = converted_gguf(place / "tiny.gguf")
    assert {Path(one.communicate()[0].strip()) for one in others} == {own}
    assert list((tmp_path / "cache").iterdir()) == [own]
    assert (own / "tokenizer.json").is_file()


# --- paths that are no files, and others ---------------------------------------------------------------------


def test_models_that_cannot_be_read(place, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in (tmp_path / "loop", tmp_path / "gone", tmp_path / ("x" * 300), place / "data.jsonl" / "model"):
        refusal(capsys, "sites", name)
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refusal(capsys, "sites", folder)


def test_data_that_cannot_be_read(place, tmp_path, capsys):
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    for name in (tmp_path / "gone.jsonl", tmp_path, place / "data.jsonl" / "x", "x" * 300):
        refusal(capsys, "rank", place / "tiny", "--data", name, "--quiet")
    for name in (tmp_path / "gone.jsonl", place / "data.jsonl", "x" * 300):
        refusal(capsys, "train", place / "model", "--data-dir", name, "--out", tmp_path / "run", "--quiet")
        refusal(capsys, "evaluate", place / "model", "--adapter", name, "--quiet")
        refusal(capsys, "compare", name, "--out", tmp_path / "comparison")
        refusal(capsys, "train", place / "model", "--learning-rate", "auto", "--learning-rate-of", name, "--quiet",
                "--data-dir", place / "data", "--max-examples", 6, "--out", tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["gone", "data.jsonl/x", "x" * 300])
def test_places_that_cannot_be_written_to(place, tmp_path, capsys, where):
    """Before any work, with every command that writes."""
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data.jsonl").write_text("")
    for command in ("rank", "validate", "train", "evaluate", "verify", "compare"):
        refusal(capsys, command, place / "tiny", "--out", tmp_path / where)
    for command in ("rank", "verify"):
        refusal(capsys, command, place / "tiny", "--json", tmp_path / where / "x")


# --- nothing of others is written over -----------------------------------------------------------------------


def test_results_do_not_replace_the_data_or_the_model(place, tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    write_jsonl(tmp_path / "data.jsonl", lines(60))
    (tmp_path / "link.json").symlink_to(tmp_path / "data.jsonl")
    before = content(tmp_path)
    arguments = ["rank", folder, "--data", tmp_path / "data.jsonl", "--quiet"]
    for target in (tmp_path / "data.jsonl", tmp_path / "link.json", folder / "config.json",
                   folder / "adapter_config.json", folder / "model.safetensors"):  # fmt: skip
        refusal(capsys, *arguments, "--json", target)
    for target in (folder, tmp_path):
        assert "nothing was touched" in refusal(capsys, *arguments, "--out", target, "--overwrite")
        assert "nothing was touched" in refusal(capsys, "verify", "--out", target, "--overwrite", "--quiet")
        assert "nothing was touched" in refusal(capsys, "train", folder, "--out", target, "--resume", "--quiet")
        assert "nothing was touched" in refusal(capsys, "validate", folder, "--out", target, "--resume", "--quiet")
        assert "nothing was touched" in refusal(capsys, "compare", folder, "--out", target, "--overwrite")
    assert content(tmp_path) == before


# --- a full disk ---------------------------------------------------------------------------------------------


def train(place, out, *more):
    fixed = ["--task", "listops", "--data-dir", place / "data", "--max-examples", 6, "--max-new-tokens", 8]
    fixed += ["--steps", 2, "--batch-size", 4, "--rank", 1, "--no-likelihoods", "--quiet", "--out", out]
    return run("train", place / "model", *fixed, *more)


def test_a_run_goes_on_when_there_is_space_again(place, tmp_path, capsys):
    out = tmp_path / "run"
    with no_file_larger_than(2500):
        assert train(place, out) == 2
    said = one_sentence("\n".join(capsys.readouterr().err.splitlines()[-1:]))
    assert str(out) in said
    assert "Raise the limit on the size of files" in said or "is the disk full?" in said
    assert train(place, out, "--resume") == 0
    assert train(place, tmp_path / "whole") == 0
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not [path for path in out.rglob("*") if "unfinished" in path.name]


def test_an_earlier_report_stays_when_the_disk_is_full(place, tmp_path, capsys):
    out = tmp_path / "report"
    arguments = ["rank", place / "tiny", "--data", place / "data.jsonl", "--kinds", "mlp_out", "--quiet"]
    assert run(*arguments, "--out", out, "--json", tmp_path / "ranking.json") == 0
    before = content(tmp_path)
    for target in (["--out", out, "--overwrite"], ["--json", tmp_path / "ranking.json"]):
        with no_file_larger_than(5000):
            said = refusal(capsys, *arguments, "--seed", 1, *target)
        assert "cannot write" in said
        assert content(tmp_path) == before
    assert "No space left on device" in refusal(capsys, *arguments, "--json", "/dev/full")
    assert run(*arguments, "--json", "/dev/null") == 0


# --- output that nobody reads --------------------------------------------------------------------------------


def started(arguments: list[str], **streams) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "steerscope", *arguments], stderr=subprocess.PIPE, **streams)


def test_a_reader_that_has_gone_is_no_error():
    """``steerscope --help | head -0``, and the exit code of a program that its pipe ended."""
    reading, writing = os.pipe()
    os.close(reading)
    process = started(["--help"], stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_a_full_device_as_output():
    with open("/dev/full", "wb") as full:
        process = started(["--help"], stdout=full)
        said = process.communicate()[1].decode()
    assert process.returncode == 2
    assert "No space left on device" in one_sentence(said)


def test_closed_streams_are_no_error():
    for closing in (">&-", "2>&-", ">&- 2>&-"):
        command = f'"{sys.executable}" -m steerscope --help {closing}'
        found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        assert found.stderr == ""
        assert ("Usage" in found.stdout) == (closing == "2>&-")


# --- the parts -----------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_what_it_was(tmp_path):
    file = tmp_path / "file"
    file.write_text("before")
    file.chmod(0o640)

    def half(aside: Path) -> None:
        aside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(file, half)
    assert content(tmp_path) == {"file": b"before"}
    write_text(file, "after")
    assert content(tmp_path) == {"file": b"after"}
    assert file.stat().st_mode & 0o777 == 0o640
    (tmp_path / "link").symlink_to(file)
    write_text(tmp_path / "link", "through the link")
    assert (tmp_path / "link").is_symlink()
    assert file.read_text() == "through the link"
    with pytest.raises(InputError, match=r"cannot write .*No such file or directory\)\. Check the path\."):
        write_text(tmp_path / "no" / "file", "")
    with pytest.raises(InputError, match=r"cannot read the page .*\(Is a directory\)\. It is a folder"):
        read_text(tmp_path, "the page")


def test_many_writers_of_one_file(tmp_path):
    """At every moment the file is one writer's, and nothing is left of the others."""
    texts = [f"{i}" * 50_000 for i in range(6)]
    threads = [
        threading.Thread(target=lambda t=t: [write_text(tmp_path / "file", t) for _ in range(20)]) for t in texts
    ]
    for one in threads:
        one.start()
    while any(one.is_alive() for one in threads):
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").read_text() in texts
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_many_makers_of_one_file(tmp_path):
    made, texts = [], [f"{number}\n" * 1000 for number in range(8)]

    def make(text):
        made.append((create_text(tmp_path / "file", text), text))

    threads = [threading.Thread(target=make, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / "file").read_text()] == [text for did, text in made if did]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_handle_that_is_stale_is_opened_again(tmp_path, monkeypatch):
    """As on a network file system on which another machine has replaced the file."""
    (tmp_path / "file.json").write_text("[1]")
    real, stale = Path.read_text, [OSError(errno.ESTALE, "Stale file handle")] * 3

    def read(self, *args, **kwargs):
        if stale:
            raise stale.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read)
    assert read_text(tmp_path / "file.json", "it") == "[1]"
    stale += [OSError(errno.ESTALE, "Stale file handle")] * 2
    assert json_of(tmp_path / "file.json") == [1]
    stale += [OSError(errno.EIO, "Input/output error")]
    with pytest.raises(InputError, match="Input/output error"):
        read_text(tmp_path / "file.json", "it")


def test_a_folder_gets_all_or_nothing(tmp_path):
    folder = tmp_path / "new" / "folder"

    def interrupted() -> None:
        with written_aside(folder, "it") as aside:
            (aside / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not folder.exists()
    with written_aside(folder, "it", last=("end",)) as aside:
        (aside / "below").mkdir()
        (aside / "below" / "a").write_text("a")
        (aside / "end").write_text("end")
    assert content(folder) == {"below/a": b"a", "end": b"end"}
    with written_aside(folder, "it", last=("end",), instead_of=("below/*",)) as aside:
        (aside / "b").write_text("b")
    assert content(folder) == {"b": b"b"}


@pytest.mark.parametrize("moved", [False, True], ids=["before the move", "after the move"])
@pytest.mark.parametrize("count", range(1, 7))
def test_an_interrupt_during_the_move_brings_the_earlier_files_back(tmp_path, monkeypatch, count, moved):
    """Six moves: three earlier files go out of the way, three new ones come; the last of them ends the save."""

    def save(text: str, names: tuple[str, ...]) -> None:
        with written_aside(tmp_path, "it", last=("end",), instead_of=("old*",)) as aside:
            for name in names:
                (aside / name).write_text(text)

    save("earlier", ("a", "old", "end"))
    before, real, calls = content(tmp_path), Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == count and not moved:
            raise KeyboardInterrupt
        found = real(path, target)
        if len(calls) == count:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save("later", ("a", "b", "end"))
    assert len(calls) >= count
    assert content(tmp_path) == before


def test_a_folder_in_the_way_of_a_file_stays(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "inner").write_text("inner")
    (tmp_path / "a").write_text("earlier")

    def save() -> None:
        with written_aside(tmp_path, "it") as aside:
            (aside / "a").write_text("later")
            (aside / "b").write_text("later")

    with pytest.raises(InputError, match="cannot write it to"):
        save()
    assert content(tmp_path) == {"a": b"earlier", "b/inner": b"inner"}


def test_one_at_a_time(tmp_path):
    with alone_in(tmp_path, "train"), pytest.raises(InputError, match="another process is about to train in"):
        alone_in(tmp_path, "train").__enter__()
    with alone_in(tmp_path, "train"):
        assert list(tmp_path.iterdir()) == []


def test_rankings_that_cannot_be_read(tmp_path):
    for name, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "x", "No such file"),
        (tmp_path / ("x" * 300), "too"),
    ):
        with pytest.raises(InputError, match=rf"cannot read the ranking .*{reason}"):
            Ranking.load(name)
    (tmp_path / "latin").write_bytes("ä".encode("latin-1"))
    with pytest.raises(InputError, match="byte 0 is not UTF-8"):
        Ranking.load(tmp_path / "latin")
    (tmp_path / "other.json").write_text(json.dumps({"schema_version": 1}))
