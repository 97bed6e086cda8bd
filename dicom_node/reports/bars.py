"""The evidence sheet's bars: one row per label over the images of a series, and their axis. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dicom_node.reports.groups import shown_name
from dicom_node.reports.palette import (
    BARS,
    BOTTOM,
    EDGE,
    FAINT,
    GREY,
    GROUND,
    LINE,
    ORGAN,
    PANEL,
    PERSON,
    STATION,
    TOP,
    WARNING,
    WHITE,
    font,
)
from labeler.result import SeriesLabels
from labeler.vocabulary import Vocabulary

#: What the ends of a stack are (PS3.3 C.7.6.2.1.1: the patient's axes).
_ENDS = {"axial": ("foot", "head"), "sagittal": ("right", "left"), "coronal": ("front", "back")}

#: Stands where a certainty would, of what a person said.
PERSONS = "person"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Correction:
    """What people have changed in the labels: positions of images by label; and who they are, in lines to read.

    Attributes:
        verified: a person answers for the whole report, which holds no probability per image any more.
    """

    told: tuple[str, ...]
    verified: bool
    added: Mapping[str, frozenset[int]] = field(default_factory=dict)
    removed: Mapping[str, frozenset[int]] = field(default_factory=dict)


NOBODY = Correction((), False)


@dataclass(frozen=True)
class Row:
    """One label over the images: how probable, and whether it is said, doubted, denied, or changed by a person."""

    name: str
    station: bool
    said: Mask
    doubted: Mask
    added: Mask
    removed: Mask
    probable: NDArray[np.float64]
    best: int | None
    #: How sure the model is, where a person has spoken too.
    sure: str


def rows_of(answer: SeriesLabels, people: Correction, words: Vocabulary) -> list[Row]:
    """Stations, then organs, each in the order in which they come; then what may be there."""
    starts = {name: (min(places), min(places)) for name, places in people.removed.items()}
    starts |= {finding.name: finding.ranges[0] for finding in answer.findings}
    names = sorted(starts, key=lambda name: (words[name].kind != "station", starts[name], name))
    return [_row(name, answer, people, words) for name in dict.fromkeys((*names, *answer.unsure))]


def _row(name: str, answer: SeriesLabels, people: Correction, words: Vocabulary) -> Row:
    column, places = answer.names.index(name), range(len(answer.slices))
    found = next((finding for finding in answer.findings if finding.name == name), None)
    return Row(
        name,
        words[name].kind == "station",
        np.array([name in item.present for item in answer.slices]),
        np.array([name in item.unsure for item in answer.slices]),
        np.array([place in people.added.get(name, ()) for place in places]),
        np.array([place in people.removed.get(name, ()) for place in places]),
        np.array([item.probabilities[column] for item in answer.slices]),
        found.best if found else None,
        "" if found is None else PERSONS if name in answer.by_person else f"{found.certainty:.0%}",
    )


def draw_bars(
    image: Image.Image, pen: ImageDraw.ImageDraw, answer: SeriesLabels, people: Correction, words: Vocabulary
) -> None:
    rows = rows_of(answer, people, words)
    if not rows:
        pen.text((EDGE, TOP), "No station or organ was sure enough to be said.", WHITE, font(25))
    elif people.told:
        pen.text((BARS[1] + 8, TOP - 24), "certainty", GREY, font(14))
    high = min(34.0, (BOTTOM - 56 - TOP) / max(1, len(rows) + 0.6))
    y = float(TOP)
    for number, row in enumerate(rows):
        if number and rows[number - 1].station and not row.station:
            pen.line([(EDGE, y + high * 0.3), (BARS[1], y + high * 0.3)], LINE, 1)
            y += high * 0.6
        _draw_row(image, pen, row, y, high, people, words)
        y += high
    _axis(pen, answer, round(y) + 8)


def _draw_row(
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Row,
    y: float,
    high: float,
    people: Correction,
    words: Vocabulary,
) -> None:
    top, bottom = round(y + high * 0.12), round(y + high * 0.9)
    size = int(max(10, min(20, high * 0.72)))
    shade = GREY if row.best is None else STATION if row.station else WHITE
    mark = "?  " if row.doubted.any() and row.best is None else ""
    pen.text((BARS[0] - 18, (top + bottom) / 2), mark + shown_name(row.name, words), shade, font(size), anchor="rm")
    image.paste(Image.fromarray(bar(row, BARS[1] - BARS[0], bottom - top)), (BARS[0], top))
    if row.best is not None:
        _pointer(pen, _middle(row.best, len(row.said)), top, bottom)
    if people.told and row.sure:
        sure = PERSON if row.sure == PERSONS else GREY
        pen.text((BARS[1] + 8, (top + bottom) / 2), row.sure, sure, font(min(15, size)), anchor="lm")


def bar(row: Row, width: int, height: int) -> NDArray[np.uint8]:
    """As high as the label is probable: full where it is said, striped where it is doubted, faint where denied.

    What a person added is full and ruled, what a person removed a frame.
    """
    at = np.arange(width) * len(row.said) // width
    filled = np.arange(height)[::-1, None] < np.maximum(row.probable[at] * height, row.said[at] * 2)[None]
    diagonal = np.add.outer(np.arange(height), np.arange(width))
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = PANEL
    picture[filled] = FAINT
    picture[filled & row.doubted[at] & (diagonal // 3 % 2 == 0)] = WARNING
    picture[filled & row.said[at]] = STATION if row.station else ORGAN
    picture[:, row.added[at]] = GROUND
    picture[np.broadcast_to(row.added[at], (height, width)) & (diagonal % 8 > 1)] = PERSON
    picture[_framed(row.removed[at], height)] = PERSON
    return picture


def _framed(columns: Mask, height: int) -> Mask:
    """The border, two pixels wide, of every run of columns."""
    inner = np.zeros((height, len(columns)), np.bool_)
    inside = columns.copy()
    for shift in (1, 2):
        inside &= np.concatenate([np.zeros(shift, np.bool_), columns[:-shift]])
        inside &= np.concatenate([columns[shift:], np.zeros(shift, np.bool_)])
    inner[2:-2] = inside
    framed: Mask = np.broadcast_to(columns, inner.shape) & ~inner
    return framed


def _middle(position: int, count: int) -> float:
    return BARS[0] + (position + 0.5) * (BARS[1] - BARS[0]) / count


def _pointer(pen: ImageDraw.ImageDraw, x: float, top: int, bottom: int) -> None:
    """The best image: a dark line in the bar with a head that stands out of it."""
    pen.line([(x, top), (x, bottom - 1)], GROUND, 3)
    pen.polygon([(x - 5, top - 3), (x + 5, top - 3), (x, top + 5)], WARNING, outline=GROUND)


def _axis(pen: ImageDraw.ImageDraw, answer: SeriesLabels, y: int) -> None:
    """Numbers of images, as people call them, and which end is which; a line where a new orientation begins."""
    count = len(answer.slices)
    step = max(1, round(count / 10))
    pen.line([(BARS[0], y), (BARS[1], y)], LINE, 1)
    for position in range(0, count, step):
        x = _middle(position, count)
        pen.line([(x, y), (x, y + 6)], LINE, 1)
        pen.text((x, y + 9), str(answer.slices[position].source.shown_number), GREY, font(16), anchor="ma")
    for position in range(1, count):
        if answer.slices[position].plane != answer.slices[position - 1].plane:
            x = BARS[0] + position * (BARS[1] - BARS[0]) / count
            pen.line([(x, TOP), (x, y)], GREY, 1)
    if answer.plane in _ENDS:
        first, last = _ENDS[str(answer.plane)]
        pen.text((BARS[0] - 18, y + 9), "image", GREY, font(16), anchor="ra")
        pen.text((BARS[0], y + 32), first, GREY, font(16))
        pen.text((BARS[1], y + 32), last, GREY, font(16), anchor="ra")
