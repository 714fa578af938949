"""What every page has to be: sound, self-contained, readable without sight, without colour and without a mouse."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

STYLE = (Path(__file__).parents[2] / "steerscope" / "reports" / "style.css").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects what a page loads, says and names, and whether its elements are balanced."""

    void = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.sources, self.alts, self.handlers, self.ids, self.open = set(), [], [], [], [], []
        self.headings, self.labelled, self.policy, self.scripts = [], [], "", []
        self.tables, self.unnamed, self.regions = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        self.sources += [values[key] for key in ("src", "href", "srcset", "action") if key in values]
        self.handlers += [key for key in values if key.startswith("on")]
        self.ids += [values["id"]] if "id" in values else []
        self.labelled += [values["aria-labelledby"]] if "aria-labelledby" in values else []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.alts.append(values.get("alt", ""))
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag == "table":
            self.tables.append({"rows": [], "head": 0})
        if tag == "tr" and self.tables:
            self.tables[-1]["rows"].append([])
        if tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append("")
            if tag == "th" and "scope" not in values:
                self.unnamed.append("a heading of a table without scope")
        if "tabindex" in values and not ("aria-label" in values and "role" in values):
            self.unnamed.append(f"{tag} takes the focus and has no name")
        if tag == "h2" or values.get("role") == "region":
            self.regions.append(values.get("aria-label", ""))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        if self.open and self.open[-1] == "h2":
            self.regions[-1] += data
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1]["rows"][-1][-1] += data


def assert_sound(html: str, name: str = "") -> Page:
    """Assert what holds for every page; return what was found in it."""
    page = Page(html)
    assert not page.open, name
    assert not page.tags & {"link", "iframe", "object", "base", "form"}, name
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources), name
    assert not page.handlers, name
    for outside in ("http://", "https://", "@import", "url("):
        assert outside not in html, (name, outside)
    assert len(page.ids) == len(set(page.ids)), name
    assert set(page.labelled) <= set(page.ids), name
    # One script, and the policy lets no other run.
    assert len(page.scripts) == 1, name
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in page.policy, name
    assert f"script-src 'sha256-{digest}';" in page.policy, name
    assert "unsafe-inline" not in page.policy.replace("style-src 'unsafe-inline'", ""), name
    # Headings: one first, and no level left out on the way down.
    assert page.headings[0] == 1, name
    assert page.headings.count(1) == 1, name
    assert all(below - above <= 1 for above, below in zip(page.headings, page.headings[1:], strict=False)), name
    assert all(len(alt) > 40 for alt in page.alts), name
    assert not page.unnamed, name
    assert len(page.regions) == len(set(page.regions)), (name, page.regions)  # each landmark has a name of its own
    for table in page.tables:
        head, *rows = table["rows"]
        assert all(cell.strip() for cell in head), (name, head)
        assert all(len(row) == len(head) for row in rows), (name, head)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", re.sub(r"<[^>]+>|data:[^\"]+", " ", html.split("<script")[0])), (
        name
    )
    return page


def palette(scheme: str) -> dict[str, str]:
    """Return the colours that the style sheet names, as the light or the dark page has them."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light))
    return found | (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", dark)) if scheme == "dark" else {})


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, 1 to 21, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
