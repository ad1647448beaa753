"""What evaluations left below a run directory: result cards with their pictures, and films of temporal order."""
from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from eval.compare import differences, read_card, rows
from eval.result_card import CARD
from visualization.main_temporal import EVAL_CARD
from visualization.report.html import attempt, details, film, missing, paragraph, picture, table
from visualization.report.figures import PHOTOGRAPHS, film_uri, picture_uri
from visualization.report.run import Run

PICTURES = ("retrieval.png", "confusion_*.png", "split_*/confusion_*.png", "embedding*.png")
MEANING = {
    "retrieval": "Rows: a query video, left, and its nearest training videos. Green: of its class; red: of another.",
    "confusion": "Rows: the class; columns: what it is taken for.",
    "embedding": "Videos as points, colored by class.",
}


class Found(NamedTuple):
    """A result card below the run directory."""

    name: str  # its folder, relative to the run's, and its file where that is another than result.json
    folder: Path
    card: dict[str, Any]


def find_cards(run: Run) -> tuple[list[Found], list[str]]:
    """All cards below the run directory, by folder, and a line on each file that should be one."""
    found, problems = [], []
    for path in sorted(path for name in (CARD, EVAL_CARD) for path in run.folder.rglob(name)):
        card, problem = attempt(read_card, path)
        if problem:
            problems.append(problem)
        else:
            named = path.parent if path.name == CARD else path
            found.append(Found(str(named.relative_to(run.folder)), path.parent, card))
    return found, problems


def results_html(run: Run) -> str:
    """The cards of each task in one table, with what differs between them, and their pictures."""
    found, problems = find_cards(run)
    parts = [paragraph(f"Left out: {problem}") for problem in problems]
    if not found:
        return "".join(parts) + missing(f"No {CARD} lies below {run.folder}.", evaluation_commands(run))
    for task in dict.fromkeys(one.card["task"] for one in found):
        ours = [one for one in found if one.card["task"] == task]
        head, *lines = rows([one.card for one in ours])
        parts.append(f"<h3>{escape(task)}</h3>" + table(head, lines, numbers_from=head.index("level") + 1))
        lines = differences([one.card for one in ours])
        if lines:
            parts.append(details(f"{len(lines)} setting(s) differ between these {len(ours)} cards",
                                 "".join(map(paragraph, lines))))
        parts.append(pictures_html(run, [one.folder for one in ours]))
        parts += [details(f"Card {one.name}", f"<pre>{escape(json.dumps(one.card, indent=1))}</pre>") for one in ours]
    tasks = {one.card["task"] for one in found}
    if not any("probe" in task for task in tasks):
        parts.append(missing("No linear probe was made of this run.", evaluation_commands(run, retrieval=False)))
    return "".join(parts)


def pictures_html(run: Run, folders: Sequence[Path]) -> str:
    """The pictures in the folders of cards, and a line on each that cannot be read."""
    figures, problems = [], []
    for path in [path for folder in dict.fromkeys(folders) for pattern in PICTURES for path in sorted(folder.glob(pattern))]:
        uri, problem = attempt(picture_uri, path)
        name = path.relative_to(run.folder)
        if problem:
            problems.append(paragraph(f"Left out: {problem}"))
        else:
            figures.append(picture(uri, f"{describe(path)} of {name.parent}", f"{name}. {describe(path)}",
                                   "photo" if path.stem in PHOTOGRAPHS else "paper"))
    return "".join(problems) + (f'<div class="gallery">{"".join(figures)}</div>' if figures else "")


def describe(path: Path) -> str:
    """What kind of picture a file is."""
    return MEANING[path.stem.split("_")[0]]


def newest(run: Run) -> str:
    """The newest checkpoint, as a command names it."""
    return str(run.checkpoints[-1][1] if run.checkpoints else run.folder / "checkpoints" / "CHECKPOINT.pt")


def evaluation_commands(run: Run, retrieval: bool = True) -> str:
    """The commands that fill the section."""
    flags = f"--weights {newest(run)} --train_csv TRAIN.csv --test_csv TEST.csv --img_dim {run.flags['img_dim']}"
    lines = [f"python -m eval.retrieval {flags} --out {run.folder}/retrieval"] if retrieval else []
    return "\n".join([*lines, f"python -m eval.linear_probe {flags} --out {run.folder}/linear_probe"])


def find_films(run: Run) -> list[Path]:
    """Films of visualization.main_temporal below the run directory, by name; the folder written to last comes first."""
    films = sorted(run.folder.rglob("cam/*.mp4"))
    written = {folder: max(path.stat().st_mtime for path in films if path.parent == folder)
               for folder in {path.parent for path in films}}
    return sorted(films, key=lambda path: -written[path.parent])


def order_html(run: Run, films: Sequence[Path], most: int) -> str:
    """The films, `most` at most."""
    if not films:
        return missing("No film of temporal-order activation maps (cam/*.mp4) lies below the run directory.",
                       f"python -m visualization.report {run.folder} --cam --csv_file TRAIN.csv --test_csv TEST.csv")
    figures = []
    for path in films[:most]:
        uri, problem = attempt(film_uri, path)
        shown = film(uri, f"Temporal-order activation maps of {path.stem}") if uri else paragraph(f"Left out: {problem}")
        figures.append(f"<figure>{shown}<figcaption>{escape(str(path.relative_to(run.folder)))}</figcaption></figure>")
    more = paragraph(f"{len(films) - most} more below the run directory (--max_films).") if len(films) > most else ""
    lead = paragraph(
        "Where the network sees the arrow of time. Left to right: the clip; evidence for natural order in it; evidence "
        "for reversed order in its reversal, played back in natural time; the mean of both, in which the look of "
        "things cancels. Below: the mean of each map over time.")
    return f'{lead}<div class="films">{"".join(figures)}</div>{more}'
