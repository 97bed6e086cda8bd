"""Tables for people: no UID, and no other word, is broken where that can be helped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

#: Columns of a page that no terminal bounds: a table is as wide as it needs.
_ENDLESS = 10_000


def page_width(is_terminal: bool, environment: Mapping[str, str]) -> int | None:
    """How wide to write; None where the terminal, or COLUMNS, tells."""
    return None if is_terminal or environment.get("COLUMNS", "").isdigit() else _ENDLESS


def table(title: str, columns: Iterable[str], rows: Iterable[Any]) -> Table:
    """A table of values as they are: many are a stranger's words, so none is taken for markup; colours come as Text."""
    made = Table(title=escape(title), title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else _as_it_is(value) for value in row))
    return made


def _as_it_is(value: Any) -> str:
    return "" if value is None else escape(str(value))


def listed(title: str, columns: Iterable[str], rows: Iterable[Any], none: str = "none") -> RenderableType:
    """A table, or a word where it would be empty."""
    there = list(rows)
    return table(title, columns, there) if there else Text(f"{title}: {none}")


def fitted(made: Table, width: int) -> RenderableType:
    """A table of words in which none is broken; where the page is too narrow for that, a block of lines per row."""
    cells = [[_text(cell) for cell in (column.header, *column.cells)] for column in made.columns]
    least = [max(_longest(text.plain.split()) for text in column) for column in cells]
    natural = [max(_longest(text.plain.splitlines()) for text in column) for column in cells]
    widths = shared_out(natural, least, width - 3 * len(cells) - 1)  # a border and two blanks beside each column
    if widths is None:
        return _blocks(made)
    for column, wide in zip(made.columns, widths, strict=True):
        column.width = wide
    return made


def shared_out(natural: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
    """Widths of columns: the widest ones give way first, none below its least; None where that is too much."""
    for ceiling in range(max(natural, default=0), -1, -1):
        widths = [max(few, min(wanted, ceiling)) for wanted, few in zip(natural, least, strict=True)]
        if sum(widths) <= room:
            return widths
    return None


def _blocks(made: Table) -> Group:
    rows = zip(*(column.cells for column in made.columns), strict=True)
    blocks = [Text("\n").join(_lines(made.columns, row)) for row in rows]
    title, caption = (_text(words, style) for words, style in ((made.title, "table.title"), (made.caption, "dim")))
    parts = [part for part in (title, Text("\n\n").join(blocks), caption) if part.plain]
    return Group(*parts)


def _lines(columns: Sequence[Column], row: Iterable[Any]) -> Iterator[Text]:
    """What a row says, under the names of its columns."""
    for column, cell in zip(columns, row, strict=True):
        if cell:
            heading = _text(column.header, "bold")
            yield Text(": " if heading.plain else "").join([heading, _text(cell)])


def _text(words: Any, style: str = "") -> Text:
    """Cells, headings and titles are markup, or text already."""
    return words if isinstance(words, Text) else Text.from_markup(str(words or ""), style=style)


def _longest(pieces: Iterable[str]) -> int:
    return max(map(cell_len, pieces), default=0)


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 study", "2 studies": a number with its noun, whose plural may be irregular."""
    return f"{count} {one if count == 1 else many or one + 's'}"
