"""What becomes of a figure's SVG before it is written: it gets colours for dark pages, and shorter.

A picture in a page knows whether the page is dark (``prefers-color-scheme``), so one SVG serves both. What cells of a
map are coloured by stays, and so do pure white and black, which are the text in these cells.
"""

from __future__ import annotations

import re

DARK = {
    "#fffffe": "#1a2029",  # paper: the figure's ground, and hollow marks
    "#1d2430": "#e8eaee",  # ink
    "#5b6472": "#a2abb8",  # muted
    "#d9dde3": "#39424f",  # grid
    "#8a1c1c": "#ff8f8f",  # null
    "#1f4e8c": "#8fb8ee",  # accent
    "#b35900": "#f0a35e",
    "#007a5a": "#4cc9a4",
    "#a8518a": "#e39bc9",
    "#3b3b3b": "#c9ccd1",
    "#0072b2": "#62b6ec",
    "#b8860b": "#e0b84a",
    "#777777": "#a6a6a6",
    "#e8eef6": "#25344c",  # margins
    "#eceef1": "#2b333f",  # what chance does
    "#dbe6f4": "#25344c",  # bands and tiles, with ink on them
    "#7fa6d6": "#3f6ea8",
    "#f1f2f4": "#232a34",  # no such site
    "#b9c0ca": "#4c5665",
}


def finished_svg(svg: bytes) -> bytes:
    """Return a figure that is drawn in dark colours where the reader prefers them, on screens; half as long.

    Args:
        svg: A figure as matplotlib writes it, its colours in ``style`` attributes.

    Returns:
        The same picture to a hundredth of a point, with a style sheet of dark colours for those that it has.
    """
    text = _shortened(svg.decode("utf-8"))
    rules = [
        f'[style*="{what}:{light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
        if f"{what}:{light}" in text
    ]
    # Grounds of hatches have attributes.
    rules += [f'[fill="{light}"]{{fill:{dark}}}' for light, dark in DARK.items() if f'fill="{light}"' in text]
    sheet = f"<style>@media screen and (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"
    return text.replace("</defs>", f"</defs>{sheet}", 1).encode("utf-8")


def _shortened(text: str) -> str:
    """Take out what is not drawn: comments, names of groups, digits beyond a hundredth of a point, white space."""
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", "\n", text)
    text = _without_plain_groups(re.sub(r'<g id="[^"]*"', "<g", text).replace(">\n<", "><"))
    # What draws one thing by its name needs no group around it; and no prefix since SVG 2.
    text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace(" xlink:href=", " href=")
    text = re.sub(r'<g( transform="[^"]*")><use( href="#[^"]*")/></g>', r"<use\2\1/>", text)
    text = re.sub(r' style="[^"]*"', lambda style: style[0].replace(": ", ":").replace("; ", ";"), text)
    text = re.sub(r' d="([^"]*)"', lambda path: f' d="{_path(path[1])}"', text)
    text = re.sub(r' (?:x|y)="[^"]*"|translate\([^)]*\)', lambda place: _numbers(place[0]), text)
    text = _ALIKE.sub(_together, text)
    # Glyphs, markers and clips by the order in which they occur.
    names = dict.fromkeys(re.findall(r'<(?:path|clipPath|pattern)[^>]*? id="([^"]+)"', text))
    short = {name: f"i{number}" for number, name in enumerate(names)}
    return re.sub(
        r'( id="|href="#|url\(#)([^")]+)', lambda use: use[1] + short.get(use[2], use[2]), text
    )  # fmt: skip


# Marks one after the other with one style, which a group around them can have.
_ALIKE = re.compile(r'<use[^>]*( style="[^"]*")/>(?:<use[^>]*\1/>)+')


def _together(run: re.Match[str]) -> str:
    style = run[1]
    if re.search(r'[";]opacity:', style):  # that of a group is of all that is in it, taken together
        return run[0]
    return f"<g{style}>{run[0].replace(style, '')}</g>"


def _without_plain_groups(text: str) -> str:
    """Take out groups that say nothing of what is in them."""
    plain: list[bool] = []

    def kept(tag: re.Match[str]) -> str:
        if tag[0] == "<g/>":
            return ""
        if tag[0] == "</g>":
            return "" if plain.pop() else tag[0]
        if not tag[0].endswith("/>"):
            plain.append(tag[0] == "<g>")
            return "" if plain[-1] else tag[0]
        return tag[0]

    return re.sub(r"<g(?: [^>]*)?/?>|</g>", kept, text)


def _numbers(text: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)


def _path(commands: str) -> str:
    """Return a path with rounded numbers, and with ``H`` and ``V`` for lines along an axis."""
    found, at = [], ("", "")
    for command, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", _numbers(commands)):
        ends = rest.split()
        if command == "L" and len(ends) == 2 and at[0] == ends[0] != "":
            found.append(f"V{ends[1]}")
        elif command == "L" and len(ends) == 2 and at[1] == ends[1] != "":
            found.append(f"H{ends[0]}")
        else:
            found.append(command + " ".join(ends))
        at = (ends[-2], ends[-1]) if len(ends) > 1 else ("", "")
    return "".join(found)
