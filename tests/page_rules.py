"""Rules that every HTML page keeps for people who hear it, enlarge it or read it on a phone: what needs no browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = ("meta", "br", "link", "img", "input", "hr")
SERIOUS = 4.5
"""Least contrast of text (WCAG 2.2, 1.4.3); of lines and dots it is 3 (1.4.11)."""
GRAPHIC = 3.0


class _Page(HTMLParser):
    """What the rules ask about, gathered in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[tuple[str, dict[str, str]]] = []
        self.counts: dict[str, int] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.lang = ""
        self.level = 0
        self.title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.lang = given.get("lang", "") if tag == "html" else self.lang
        if tag == "th" and given.get("scope") not in ("col", "row"):
            self.found.append(f"a <th> without scope at {self.getpos()}")
        if tag == "pre" and "tabindex" not in given:
            self.found.append(f"a <pre> that the keyboard can't scroll at {self.getpos()}")
        if tag == "table" and not self._scrolls():
            self.found.append(f"a table outside of a labelled box that scrolls at {self.getpos()}")
        if re.fullmatch(r"h[1-6]", tag):
            if int(tag[1]) > self.level + 1:
                self.found.append(f"<{tag}> after level {self.level} at {self.getpos()}")
            self.level = int(tag[1])
        if tag not in VOID:
            self.open.append((tag, given))

    def _scrolls(self) -> bool:
        boxes = [given for _, given in self.open if given.get("class") == "wide"]
        return any(box.get("tabindex") == "0" and box.get("aria-label") and box.get("role") for box in boxes)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        opened = self.open.pop()[0] if self.open else "nothing"
        if opened != tag:
            self.found.append(f"</{tag}> closes <{opened}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        path = [tag for tag, _ in self.open]
        if path[-2:] == ["head", "title"]:
            self.title += data


def faults(html: str) -> list[str]:
    """Breaches of the rules, in words; none in a good page."""
    page = _Page()
    page.feed(html)
    found = list(page.found)
    if not page.lang:
        found.append("no lang")
    if not page.title.strip():
        found.append("no title")
    if page.counts.get("h1") != 1:
        found.append(f"{page.counts.get('h1', 0)} <h1>")
    if page.counts.get("table", 0) != page.counts.get("caption", 0):
        found.append("a table without caption")
    if 'name="viewport"' not in html:
        found.append("no viewport: a phone shows it tiny")
    outside = [link for link in page.links if not link.startswith("#")]
    missing = [link for link in page.links if link.startswith("#") and link[1:] not in page.ids]
    return [
        *found,
        *(f"a link to {link}, which is not in the page" for link in (*outside, *missing)),
        *_contrasts(html),
    ]


def _contrasts(html: str) -> list[str]:
    """Colours of text and of pictures that are too faint, in the light and in the dark palette."""
    found = []
    for number, block in enumerate(re.findall(r":root \{([^}]*)\}", html)):
        colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})\b", block))
        least = dict.fromkeys(("ink", "soft", "link", "good", "warn", "bad"), SERIOUS)
        least |= {f"c{n}": GRAPHIC for n in range(1, 5)}
        for name, needed in least.items():
            for behind in ("page", "card", "tint"):
                reached = contrast(colours[name], colours[behind])
                if reached < needed:
                    found.append(f"--{name} on --{behind} has {reached:.2f} in palette {number}, not {needed}")
    return found or ([] if ":root" in html else ["no palette"])


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21, by WCAG's relative luminance."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:]
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
