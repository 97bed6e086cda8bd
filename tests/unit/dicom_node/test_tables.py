"""A UID can be copied from every table, and grepped out of a pipe."""

from __future__ import annotations

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from dicom_node.desk.tables import counted, fitted, page_width, shared_out, table

UIDS = [f"1.2.826.0.1.3680043.8.498.{'7' * 37}{row}" for row in (1, 2)]
ROWS = [
    (uid, "1.2.3", Text("quarantined", "red"), "the labeler failed three times, and the words go on") for uid in UIDS
]


def shown(width: int) -> str:
    console = Console(width=width, file=StringIO())
    made = table("Not labelled", ("study", "series", "state", "agreement"), ROWS)
    console.print(fitted(made, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [70, 80, 100, 110, 120, 200, 10_000])
def test_no_uid_is_broken_and_no_line_is_too_long(width: int) -> None:
    said = shown(width)
    assert all(uid in said for uid in UIDS)
    assert "agreement" in said
    assert max(map(len, said.splitlines())) <= width


@pytest.mark.parametrize("words", ['let [[peers]] say so: may = ["push"]', "no bed [/red]", "[bold]CT1", "a\\[b]"])
@pytest.mark.parametrize("width", [14, 20, 10_000])
def test_a_strangers_words_are_shown_as_they_are(words: str, width: int) -> None:
    console = Console(width=width, file=StringIO())
    console.print(fitted(table("Deliveries", ("study", "answer"), [("1.2", words)]), width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert words.replace(" ", "") in "".join(shown.replace("│", "").split())


def test_prose_folds_before_a_row_becomes_a_block() -> None:
    assert "│ " in shown(110)
    assert len(shown(110).splitlines()) > len(shown(10_000).splitlines())
    assert f"study: {UIDS[0]}\n" in shown(80)


def test_a_page_without_a_terminal_has_no_edge_but_the_one_that_is_set() -> None:
    assert page_width(True, {}) is None
    assert page_width(False, {"COLUMNS": "90"}) is None
    endless = page_width(False, {"COLUMNS": ""})
    assert endless is not None
    assert endless > 1000


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 200)), min_size=1), st.integers(0, 400))
def test_columns_share_the_room_and_none_goes_below_its_least(pairs: list[tuple[int, int]], room: int) -> None:
    least, natural = [few for few, _ in pairs], [few + more for few, more in pairs]
    widths = shared_out(natural, least, room)
    if widths is None:
        assert sum(least) > room
    else:
        assert sum(widths) <= room
        assert all(few <= wide <= wanted for few, wide, wanted in zip(least, widths, natural, strict=True))


def test_one_of_a_thing_is_one_thing() -> None:
    assert [counted(1, "image"), counted(2, "image")] == ["1 image", "2 images"]
    assert [counted(1, "delivery", "deliveries"), counted(0, "delivery", "deliveries")] == [
        "1 delivery",
        "0 deliveries",
    ]
