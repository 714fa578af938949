"""Every source that the code or the docs cite is one that a reader can open."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", ROOT / "CHANGELOG.md"] + sorted(
    path
    for folder, ends in (
        ("steerscope", (".py", ".jinja")),
        ("studies", (".py",)),
        ("benchmarks", (".py",)),
        ("docs", (".md",)),
        ("tests", (".py",)),
    )
    for path in (ROOT / folder).rglob("*")
    if path.suffix in ends and path != Path(__file__)
)
NOWHERE = re.compile(
    r"\bT\d{1,2}\b"  # statements are P1 to P46, in docs/theory.md
    r"|\[(KG|CODE)\]"
    r"|\btheory notes\b|\bnotes (ask|found|say|on the paper)\b|\bopen points? \d|\bissue table\b"
    r"|(?<!docs/)(?<![(\[`\"])\btheory\.md\b"  # a file has its path, or is a link
)


def nowhere(text: str) -> list[str]:
    """Return what cites something that no reader has."""
    return [found[0] for found in NOWHERE.finditer(text)]


def test_no_reference_leads_nowhere() -> None:
    assert len(FILES) > 300
    found = {path.relative_to(ROOT).as_posix(): nowhere(path.read_text(encoding="utf-8")) for path in FILES}
    assert not {path: cited for path, cited in found.items() if cited}


@pytest.mark.parametrize(
    "text", ["Source: T16.", "[KG]", "the notes ask for 1e-12", "theory.md 3(f)", "open point 5 of the theory notes"]
)
def test_private_references_are_found(text: str) -> None:
    assert nowhere(text)


@pytest.mark.parametrize(
    "text", ["Source: P16.", "docs/theory.md", "[theory](theory.md)", "notes: What a user should know."]
)
def test_public_references_are_not(text: str) -> None:
    assert not nowhere(text)
