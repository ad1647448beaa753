"""Reports read back: their elements, and the text of each section."""
from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser

from visualization.report.__main__ import main

SECTIONS = ["warnings", "configuration", "events", "curves", "prototypes", "rank", "embedding", "results", "order"]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements as (tag, attributes, text inside it and below), with a check that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = dict.fromkeys(SECTIONS, "")
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if dict(attrs).get("src", "").startswith("data:image/svg"):
            self.handle_chart(dict(attrs)["src"])
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop()[0] == tag, tag

    def handle_data(self, data):
        for tag, attributes in self.open:
            if tag == "section":
                self.texts[attributes["id"]] += re.sub(r"\s+", " ", data)

    def handle_chart(self, uri):
        """Text of a chart, an SVG image, is text of its section."""
        texts = re.findall(r"<text[^>]*>(.*?)</text>", base64.b64decode(uri.split(",")[1]).decode(), re.DOTALL)
        self.handle_data(" ".join(html.unescape(text) for text in texts))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read_page(path) -> Page:
    return Page(path.read_text())


def report(run, *flags: object, out=None) -> Page:
    out = out or run / "report.html"
    assert main([str(run), "--out", str(out), "--workers", "0", "--gpu", "none", *map(str, flags)]) == 0
    return read_page(out)
