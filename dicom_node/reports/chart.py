"""The evidence sheet's picture: where in a series each station and organ was seen, and what the header says. Pure.

Drawn for a reading room's 1920 x 1080 screen: light on dark, blue against orange, which the colour-blind tell apart,
and never by colour alone. No person is named on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.reports.groups import SAID_BY_PERSON, shown_name
from dicom_node.reports.header import Agreement, Verdict
from labeler.result import SeriesLabels
from labeler.slices import FloatImage
from labeler.vocabulary import Vocabulary

SIZE = (1920, 1080)
_EDGE, _TOP, _BOTTOM = 48, 236, 968
_BARS = (316, 1330)
_TILES = (1392, SIZE[0] - _EDGE)

_GROUND, _PANEL, _LINE = (13, 17, 23), (22, 28, 36), (48, 56, 66)
_WHITE, _GREY = (236, 240, 244), (150, 160, 171)
_STATION, _ORGAN, _WARNING = (86, 180, 233), (222, 230, 238), (240, 160, 40)
_FAINT = (58, 68, 80)

#: What the ends of a stack are (PS3.3 C.7.6.2.1.1: the patient's axes).
_ENDS = {"axial": ("foot", "head"), "sagittal": ("right", "left"), "coronal": ("front", "back")}
#: Window of a picture by station, level and width in HU; else soft tissue.
_WINDOWS = {"chest": (-400.0, 1500.0)}
_SOFT_TISSUE = (40.0, 400.0)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Caption:
    """What stands around the bars: of the series, the verdict on its header, and the report that this belongs to."""

    series: str
    verdict: Verdict
    report_uid: str
    finished: str


def drawn(
    answer: SeriesLabels, pictures: Mapping[str, FloatImage], caption: Caption, words: Vocabulary
) -> NDArray[np.uint8]:
    """The picture, uint8 (1080, 1920, 3).

    Args:
        pictures: upright plane of the best image per station, HU or MR values.
    """
    image = Image.new("RGB", SIZE, _GROUND)
    pen = ImageDraw.Draw(image)
    _heading(pen, answer, caption)
    _verdict(pen, caption.verdict)
    _bars(image, pen, answer, words)
    _tiles(image, pen, answer, pictures, words)
    _legend(pen)
    _footer(pen, answer, caption)
    return np.asarray(image)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _heading(pen: ImageDraw.ImageDraw, answer: SeriesLabels, caption: Caption) -> None:
    pen.text((_EDGE, 36), "Anatomy seen by AI", _WHITE, _font(38))
    told = [answer.modality, caption.series, _images(len(answer.slices)), answer.plane or ""]
    pen.text((_EDGE, 92), "   ".join(part for part in told if part), _GREY, _font(23))
    warning, right = "NOT VERIFIED BY A PERSON - NOT FOR DIAGNOSIS", SIZE[0] - _EDGE
    wide = pen.textlength(warning, _font(22))
    pen.rounded_rectangle((right - wide - 40, 36, right, 84), 24, outline=_WARNING, width=2)
    pen.text((right - 20, 60), warning, _WARNING, _font(22), anchor="rm")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


# -- the verdict -----------------------------------------------------------------------------------------------------


def _verdict(pen: ImageDraw.ImageDraw, verdict: Verdict) -> None:
    """Header against pixels: a sign, and the same in words."""
    colour = _WARNING if verdict.agreement == Agreement.DIFFER else _STATION
    pen.rounded_rectangle((_EDGE, 136, SIZE[0] - _EDGE, 196), 10, _PANEL)
    sign, told = _TOLD[verdict.agreement]
    sign(pen, _EDGE + 36, 166, colour)
    parts = [
        ("Body Part Examined", _GREY),
        (verdict.claimed or "(empty)", _WHITE),
        ("pixels show", _GREY),
        (verdict.implied.replace("\\", ", ") or "nothing sure enough", _WHITE),
        (told, colour),
    ]
    x = _EDGE + 76.0
    for text, shade in parts:
        pen.text((x, 166), text, shade, _font(25), anchor="lm")
        x += pen.textlength(text, _font(25)) + 22


def _tick(pen: ImageDraw.ImageDraw, x: int, y: int, colour: Colour) -> None:
    pen.line([(x - 12, y), (x - 3, y + 10), (x + 13, y - 11)], colour, 5, joint="curve")


def _unequal(pen: ImageDraw.ImageDraw, x: int, y: int, colour: Colour) -> None:
    for height in (-6, 6):
        pen.line([(x - 13, y + height), (x + 13, y + height)], colour, 5)
    pen.line([(x - 8, y + 16), (x + 8, y - 16)], colour, 5)


def _ring(pen: ImageDraw.ImageDraw, x: int, y: int, colour: Colour) -> None:
    pen.ellipse((x - 12, y - 12, x + 12, y + 12), outline=colour, width=4)


_TOLD: dict[Agreement, tuple[Callable[[ImageDraw.ImageDraw, int, int, Colour], None], str]] = {
    Agreement.AGREE: (_tick, "they agree"),
    Agreement.DIFFER: (_unequal, "they DIFFER"),
    Agreement.ABSENT: (_ring, "the header is silent"),
    Agreement.UNSURE: (_ring, "the pixels are not sure"),
}


# -- bars ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One label over the slices: how probable, and whether it is said, doubted or denied."""

    name: str
    station: bool
    said: NDArray[np.bool_]
    doubted: NDArray[np.bool_]
    probable: NDArray[np.float64]
    best: int | None


def _rows(answer: SeriesLabels, words: Vocabulary) -> list[_Row]:
    """Stations, then organs, each in the order in which they come; then what may be there."""
    best = {finding.name: finding.best for finding in answer.findings}
    starts = {finding.name: finding.ranges[0] for finding in answer.findings}
    names = sorted(best, key=lambda name: (words[name].kind != "station", starts[name]))
    made = []
    for name in (*names, *answer.unsure):
        column = answer.names.index(name)
        made.append(
            _Row(
                name,
                words[name].kind == "station",
                np.array([name in item.present for item in answer.slices]),
                np.array([name in item.unsure for item in answer.slices]),
                np.array([item.probabilities[column] for item in answer.slices]),
                best.get(name),
            )
        )
    return made


def _bars(image: Image.Image, pen: ImageDraw.ImageDraw, answer: SeriesLabels, words: Vocabulary) -> None:
    rows = _rows(answer, words)
    if not rows:
        pen.text((_EDGE, _TOP), "No station or organ was sure enough to be said.", _WHITE, _font(25))
    high = min(34.0, (_BOTTOM - 56 - _TOP) / max(1, len(rows) + 0.6))
    font = _font(int(max(10, min(20, high * 0.72))))
    y = float(_TOP)
    for number, row in enumerate(rows):
        if number and rows[number - 1].station and not row.station:
            pen.line([(_EDGE, y + high * 0.3), (_BARS[1], y + high * 0.3)], _LINE, 1)
            y += high * 0.6
        top, bottom = round(y + high * 0.12), round(y + high * 0.9)
        shade = _STATION if row.station else _WHITE if row.best is not None else _GREY
        mark = "" if row.best is not None else "?  "
        pen.text((_BARS[0] - 18, (top + bottom) / 2), mark + shown_name(row.name, words), shade, font, anchor="rm")
        image.paste(Image.fromarray(_bar(row, _BARS[1] - _BARS[0], bottom - top)), (_BARS[0], top))
        if row.best is not None:
            _pointer(pen, _middle(row.best, len(answer.slices)), top, bottom)
        y += high
    _axis(pen, answer, round(y) + 8)


def _bar(row: _Row, width: int, height: int) -> NDArray[np.uint8]:
    """As high as the label is probable: full where it is said, striped where it is doubted, faint where denied."""
    at = np.arange(width) * len(row.said) // width
    filled = np.arange(height)[::-1, None] < np.maximum(row.probable[at] * height, row.said[at] * 2)[None]
    striped = (np.add.outer(np.arange(height), np.arange(width)) // 3) % 2 == 0
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = _PANEL
    picture[filled] = _FAINT
    picture[filled & row.doubted[at] & striped] = _WARNING
    picture[filled & row.said[at]] = _STATION if row.station else _ORGAN
    return picture


def _middle(position: int, count: int) -> float:
    return _BARS[0] + (position + 0.5) * (_BARS[1] - _BARS[0]) / count


def _pointer(pen: ImageDraw.ImageDraw, x: float, top: int, bottom: int) -> None:
    """The best image: a dark line in the bar with a head that stands out of it."""
    pen.line([(x, top), (x, bottom - 1)], _GROUND, 3)
    pen.polygon([(x - 5, top - 3), (x + 5, top - 3), (x, top + 5)], _WARNING, outline=_GROUND)


def _axis(pen: ImageDraw.ImageDraw, answer: SeriesLabels, y: int) -> None:
    """Numbers of images, as people call them, and which end is which; a line where a new orientation begins."""
    count = len(answer.slices)
    step = max(1, round(count / 10))
    pen.line([(_BARS[0], y), (_BARS[1], y)], _LINE, 1)
    for position in range(0, count, step):
        x = _middle(position, count)
        pen.line([(x, y), (x, y + 6)], _LINE, 1)
        pen.text((x, y + 9), str(answer.slices[position].source.shown_number), _GREY, _font(16), anchor="ma")
    for position in range(1, count):
        if answer.slices[position].plane != answer.slices[position - 1].plane:
            x = _BARS[0] + position * (_BARS[1] - _BARS[0]) / count
            pen.line([(x, _TOP), (x, y)], _GREY, 1)
    if answer.plane in _ENDS:
        first, last = _ENDS[str(answer.plane)]
        pen.text((_BARS[0] - 18, y + 9), "image", _GREY, _font(16), anchor="ra")
        pen.text((_BARS[0], y + 32), first, _GREY, _font(16))
        pen.text((_BARS[1], y + 32), last, _GREY, _font(16), anchor="ra")


# -- best images -----------------------------------------------------------------------------------------------------


def _tiles(
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    answer: SeriesLabels,
    pictures: Mapping[str, FloatImage],
    words: Vocabulary,
) -> None:
    """The best image of each station, as large as there is room."""
    shown = [finding for finding in answer.findings if finding.name in pictures]
    for finding, (left, top, side) in zip(shown, _places(len(shown)), strict=True):
        tile = _tile(pictures[finding.name], answer.modality, finding.name, side)
        image.paste(tile, (left, top))
        pen.rectangle((left, top, left + side - 1, top + side - 1), outline=_LINE)
        best = answer.slices[finding.best].source.shown_number
        sure = SAID_BY_PERSON if finding.name in answer.by_person else f"{finding.certainty:.0%}"
        told = f"{shown_name(finding.name, words)}  image {best}  {sure}"
        pen.text((left, top + side + 8), told, _STATION, _font(max(13, min(20, side // 14))))


def _places(count: int) -> list[tuple[int, int, int]]:
    """Left, top and side of so many tiles."""
    wide, gap, caption = _TILES[1] - _TILES[0], 16, 40
    sides = {
        columns: min((wide + gap) // columns - gap, (_BOTTOM + 60 - _TOP) // -(-count // columns) - caption - 4)
        for columns in range(1, 5)
        if count
    }
    columns = max(sides, key=lambda one: sides[one], default=1)
    side = sides.get(columns, 0)
    return [
        (_TILES[0] + (i % columns) * (side + gap), _TOP + (i // columns) * (side + caption + 4), side)
        for i in range(count)
    ]


def _tile(plane: FloatImage, modality: str, station: str, side: int) -> Image.Image:
    if modality == "CT":
        level, width = _WINDOWS.get(station, _SOFT_TISSUE)
        low, high = level - width / 2, level + width / 2
    else:
        low, high = np.percentile(plane, (0.5, 99.5))
    grey = Image.fromarray((np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8))
    scale = side / max(grey.size)
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    tile = Image.new("L", (side, side))
    tile.paste(grey.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile.convert("RGB")


# -- below -----------------------------------------------------------------------------------------------------------


def _legend(pen: ImageDraw.ImageDraw) -> None:
    x, y = float(_BARS[0]), SIZE[1] - 56
    for text, draw in _legend_items():
        draw(pen, round(x), y)
        pen.text((x + 40, y), text, _GREY, _font(16), anchor="lm")
        x += 40 + pen.textlength(text, _font(16)) + 34


def _legend_items() -> Iterator[tuple[str, Callable[[ImageDraw.ImageDraw, int, int], None]]]:
    def filled(colour: Colour) -> Callable[[ImageDraw.ImageDraw, int, int], None]:
        return lambda pen, x, y: pen.rectangle((x, y - 7, x + 30, y + 7), colour)

    def striped(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
        everywhere = np.ones(1, np.bool_)
        row = _Row("", False, ~everywhere, everywhere, np.ones(1), None)
        pen._image.paste(Image.fromarray(_bar(row, 31, 15)), (x, y - 7))

    yield "station", filled(_STATION)
    yield "organ (height: how probable)", filled(_ORGAN)
    yield "not sure", striped
    yield "not said", filled(_FAINT)
    yield "best image", lambda pen, x, y: pen.polygon([(x + 9, y - 5), (x + 21, y - 5), (x + 15, y + 6)], _WARNING)


def _footer(pen: ImageDraw.ImageDraw, answer: SeriesLabels, caption: Caption) -> None:
    bundle = answer.bundle
    told = f"{bundle.name} {bundle.version}, weights {bundle.weights_sha256[:12]}    {caption.finished}"
    pen.text((_EDGE, SIZE[1] - 26), f"{told}    report {caption.report_uid}", _GREY, _font(15), anchor="lm")
