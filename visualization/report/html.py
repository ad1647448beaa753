"""The page around the sections: its head, style and table of contents, and the small pieces that sections are made of.

Every text that comes from a file is escaped, and the page's own policy forbids it to load anything.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import InputError, one_line

STYLE = Path(__file__).with_name("report.css")
# Pictures and films inside the page, its own style, nothing else: no script, no request.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


class Section(NamedTuple):
    """A part of the page: its anchor, its heading, its content in HTML."""

    anchor: str
    heading: str
    content: str


def page(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """The whole document; `lead` and `foot` are HTML."""
    contents = "".join(f'<li><a href="#{one.anchor}">{escape(one.heading)}</a></li>' for one in sections)
    body = "".join(f'<section id="{one.anchor}" aria-labelledby="{one.anchor}-heading"><h2 id="{one.anchor}-heading">'
                   f'{escape(one.heading)}</h2>{one.content}</section>' for one in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<header>{lead}</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{body}
</main>
<footer>{foot}</footer>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p{f" class={kind!r}" if kind else ""}>{escape(text)}</p>'


def attempt(work: Callable[..., Any], *arguments: Any, **settings: Any) -> tuple[Any, str]:
    """(what `work` returns, ""), or (None, the InputError's line), for what a page can do without."""
    try:
        return work(*arguments, **settings), ""
    except InputError as error:
        return None, one_line(error)


def missing(reason: str, command: str | None = None) -> str:
    """Why a section is empty, and the command that fills it."""
    how = f"<pre>{escape(command)}</pre>" if command else ""
    return f'<div class="missing"><p>{escape(reason)}</p>{how}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, numbers_from: int | None = None,
          caption: str = "") -> str:
    """A table of plain texts; columns from `numbers_from` on are numbers."""
    def cell(tag: str, column: int, value: object) -> str:
        kind = ' class="number"' if numbers_from is not None and column >= numbers_from else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{kind}{scope}>{escape(str(value))}</{tag}>"

    def line(tag: str, values: Sequence[object]) -> str:
        return f'<tr>{"".join(cell(tag, column, value) for column, value in enumerate(values))}</tr>'

    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (f'<div class="wide"><table>{above}<thead>{line("th", head)}</thead>'
            f'<tbody>{"".join(line("td", row) for row in rows)}</tbody></table></div>')


def facts(values: Mapping[str, object]) -> str:
    """Names and values as a list."""
    pairs = (f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items())
    return f'<dl>{"".join(pairs)}</dl>'


def details(summary: str, content: str) -> str:
    """HTML that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def picture(uri: str, alt: str, caption: str, kind: str = "paper") -> str:
    """A picture with its caption; "paper": black lines on white, turned over in the dark."""
    return (f'<figure class="{kind}"><img src="{uri}" alt="{escape(alt)}">'
            f'<figcaption>{escape(caption)}</figcaption></figure>')


def film(uri: str, label: str, still: str | None = None) -> str:
    """A film that plays silently over and over, with controls to stop it; `still` is shown before it plays."""
    poster = f' poster="{still}"' if still else ""
    return (f'<video src="{uri}"{poster} aria-label="{escape(label)}" autoplay muted loop playsinline controls>'
            '</video>')
