"""Reports: an HTML file that needs no other file, its numbers as JSON and its pictures as PNG."""

import base64
import dataclasses
import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_crl.study.statistics import Estimate
from torch_crl.system.files import read_bytes, write_json, write_text
from torch_crl.system.machine import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | Estimate | None

_PICTURE_DPI = 150
# With this policy a browser loads nothing from elsewhere, whatever the page contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Paragraphs, separated by empty lines."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of cells; an estimate is shown with its interval, None as an empty cell."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture, or several views of one thing that the reader switches between."""

    name: str
    """Name of the PNG file without its ending; must differ from those of all other pictures."""
    caption: str
    views: "Mapping[str, Figure]"
    """Title of a view to its figure; the first view is shown first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and the parts under it."""

    title: str
    parts: tuple[Text | Table | Picture, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The contents of a report."""

    title: str
    question: str
    """What was asked, in a sentence or two."""
    findings: tuple[str, ...] = ()
    """The answer, most important first."""
    sections: tuple[Section, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    """How the report was made: see `provenance`."""
    data: dict[str, Any] = field(default_factory=dict)
    """All numbers that report.json gets beside the tables."""


def provenance(command: str) -> dict[str, str]:
    """The command, machine, versions, commit and date, for `Report.facts`."""
    made = machine()
    versions = [f"{name} {made[name]}" for name in ("torch_crl", "torch", "mujoco")]
    facts = {
        "command": command,
        "report written on": str(made["device"]),
        "versions": ", ".join(versions),
        "commit": str(made["commit"]) or "not known (no git repository)",
        "date": str(made["date"]),
    }
    return {name: value for name, value in facts.items() if value}


def write_report(report: Report, folder: str | Path) -> Path:
    """Write report.html, report.json and the PNGs into `folder`; returns the path of the HTML.

    The HTML holds its pictures and loads nothing, so it can be moved and opened anywhere. PNGs of a
    former report in this folder are deleted.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _former_pictures(folder):
        (folder / name).unlink(missing_ok=True)
    sections = "".join(_section(section, folder) for section in report.sections)
    findings = "".join(f"<li>{_text(finding)}</li>" for finding in report.findings)
    facts = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.facts.items()
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(report.title)}</title>\n<style>\n{_asset('report.css')}</style></head>\n"
        f"<body>\n<h1>{_text(report.title)}</h1>\n"
        f'<p class="question">{_text(report.question)}</p>\n'
        + (f'<ul class="findings">{findings}</ul>\n' if findings else "")
        + sections
        + (f"<h2>How this came about</h2>\n<dl>{facts}</dl>\n" if facts else "")
        + f"<script>\n{_asset('report.js')}</script>\n</body></html>\n"
    )
    write_json(folder / "report.json", _document(report))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _former_pictures(folder: Path) -> list[str]:
    """Names of the PNGs that the report in this folder lists."""
    try:
        names = json.loads(read_bytes(folder / "report.json"))["pictures"]
        return [name for name in names if name.endswith(".png") and Path(name).name == name]
    # There is no report yet, or one of an older version, which lists none.
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def shown(value: Cell) -> str:
    """A cell as text: three significant digits, or all digits before the decimal point."""
    if value is None:
        return ""
    if isinstance(value, Estimate):
        if value.interval is None:
            return f"{shown(value.point)} (no interval)"
        low, high = map(shown, value.interval)
        return f"{shown(value.point)} [{low}, {high}]"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _section(section: Section, folder: Path) -> str:
    parts = []
    for part in section.parts:
        if isinstance(part, Text):
            paragraphs = filter(None, (piece.strip() for piece in part.text.split("\n\n")))
            parts.append("".join(f"<p>{_text(piece)}</p>\n" for piece in paragraphs))
        elif isinstance(part, Table):
            parts.append(_table(part))
        else:
            parts.append(_picture(part, folder))
    return f"<h2>{_text(section.title)}</h2>\n{''.join(parts)}"


def _table(table: Table) -> str:
    def is_number(column: int) -> bool:
        cells = [row[column] for row in table.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)

    classes = [' class="number"' if is_number(i) else "" for i in range(len(table.columns))]
    head = "".join(
        f"<th{kind}>{_text(name)}</th>" for name, kind in zip(table.columns, classes, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}{_sort_key(cell)}>{_cell(cell)}</td>"
            for cell, kind in zip(row, classes, strict=True)
        )
        + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><caption>{_text(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )


def _cell(cell: Cell) -> str:
    number, space, rest = (
        shown(cell).partition(" ") if isinstance(cell, Estimate) else (shown(cell), "", "")
    )
    return _text(number) + (f"{space}<small>{_text(rest)}</small>" if rest else "")


def _sort_key(cell: Cell) -> str:
    value = cell.point if isinstance(cell, Estimate) else cell
    return "" if value is None or isinstance(value, str) else f' data-sort="{value:g}"'


def _picture(picture: Picture, folder: Path) -> str:
    images = []
    several = len(picture.views) > 1
    for (view, figure), name in zip(picture.views.items(), _names(picture), strict=True):
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=_PICTURE_DPI)
        (folder / name).write_bytes(buffer.getvalue())
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        alt = _text(f"{picture.caption} ({view})" if several else picture.caption)
        attribute = f' data-view="{_text(view)}"' if several else ""
        images.append(f'<img{attribute} src="{source}" alt="{alt}">')
    switched = " data-views" if len(images) > 1 else ""
    return (
        f"<figure{switched}>{''.join(images)}"
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>\n"
    )


def _names(picture: Picture) -> list[str]:
    """Name of the PNG of each view."""
    if len(picture.views) == 1:
        return [f"{picture.name}.png"]
    return [f"{picture.name}_{_file_name(view)}.png" for view in picture.views]


def _document(report: Report) -> dict[str, Any]:
    parts = [part for section in report.sections for part in section.parts]
    tables = [part for part in parts if isinstance(part, Table)]
    pictures = [part for part in parts if isinstance(part, Picture)]
    return {
        "title": report.title,
        "question": report.question,
        "findings": report.findings,
        "facts": report.facts,
        "tables": [dataclasses.asdict(table) for table in tables],
        "pictures": [name for picture in pictures for name in _names(picture)],
        "data": report.data,
    }


def _text(text: str) -> str:
    return html.escape(text)


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)


def _asset(name: str) -> str:
    return resources.files("torch_crl.study").joinpath("data", name).read_text()
