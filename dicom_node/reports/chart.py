"""The evidence sheet's picture: where in a series each station and organ was seen, and what the header says. Pure.

Drawn for a reading room's 1920 x 1080 screen: light on dark, blue against orange, which the colour-blind tell apart,
and never by colour alone. No patient is named on it; whoever has corrected the labels is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dicom_node.reports.bars import NOBODY, PERSONS, Correction, Row, bar, draw_bars
from dicom_node.reports.groups import SAID_BY_PERSON, shown_name
from dicom_node.reports.header import Agreement, Verdict
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
    SIZE,
    STATION,
    TILES,
    TOP,
    WARNING,
    WHITE,
    Colour,
    font,
)
from labeler.result import SeriesLabels
from labeler.slices import FloatImage
from labeler.vocabulary import Vocabulary

#: Window of a picture by station, level and width in HU; else soft tissue.
_WINDOWS = {"chest": (-400.0, 1500.0)}
_SOFT_TISSUE = (40.0, 400.0)


@dataclass(frozen=True)
class Caption:
    """What stands around the bars: of the series, the verdict on its header, and the report that this belongs to.

    Attributes:
        people: who has corrected what.
        doubts: labels of which the report says that the model was not sure, where it does not say on which images.
    """

    series: str
    verdict: Verdict
    report_uid: str
    finished: str
    people: Correction = NOBODY
    doubts: str = ""


def drawn(
    answer: SeriesLabels, pictures: Mapping[str, FloatImage | None], caption: Caption, words: Vocabulary
) -> NDArray[np.uint8]:
    """The picture, uint8 (1080, 1920, 3).

    Args:
        pictures: upright plane of the best image per station, HU or MR values; None where it could not be read.
    """
    image = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(image)
    _heading(pen, answer, caption)
    _verdict(pen, caption)
    draw_bars(image, pen, answer, caption.people, words)
    _tiles(image, pen, answer, pictures, words)
    _legend(pen, caption)
    _footer(pen, answer, caption)
    return np.asarray(image)


def _heading(pen: ImageDraw.ImageDraw, answer: SeriesLabels, caption: Caption) -> None:
    people, right = caption.people, SIZE[0] - EDGE
    pen.text((EDGE, 36), "Anatomy seen by AI" + ", corrected by a person" * people.verified, WHITE, font(38))
    parts = [answer.modality, caption.series, _images(len(answer.slices)), answer.plane or ""]
    about = "   ".join(part for part in parts if part)
    pen.text((EDGE, 92), about, GREY, font(23))
    warning = f"{'' if people.verified else 'NOT '}VERIFIED BY A PERSON - NOT FOR DIAGNOSIS"
    wide, colour = pen.textlength(warning, font(22)), PERSON if people.verified else WARNING
    pen.rounded_rectangle((right - wide - 40, 36, right, 84), 24, outline=colour, width=2)
    pen.text((right - 20, 60), warning, colour, font(22), anchor="rm")
    room = right - EDGE - pen.textlength(about, font(23)) - 40
    pen.text((right, 110), _cut(pen, "; ".join(people.told), room, 20), PERSON, font(20), anchor="rm")


def _cut(pen: ImageDraw.ImageDraw, text: str, room: float, size: int) -> str:
    """As much of a line as there is room for."""
    lengths = range(len(text), 0, -1)
    cuts = (text[:length] + "..." * (length < len(text)) for length in lengths)
    return next((cut for cut in cuts if pen.textlength(cut, font(size)) <= room), "")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


# -- the verdict -----------------------------------------------------------------------------------------------------


def _verdict(pen: ImageDraw.ImageDraw, caption: Caption) -> None:
    """Header against labels: a sign, and the same in words."""
    verdict, what = caption.verdict, "corrected labels" if caption.people.verified else "pixels"
    colour = WARNING if verdict.agreement == Agreement.DIFFER else STATION
    pen.rounded_rectangle((EDGE, 136, SIZE[0] - EDGE, 196), 10, PANEL)
    sign, told = _TOLD[verdict.agreement]
    sign(pen, EDGE + 36, 166, colour)
    parts = [
        ("Body Part Examined", GREY),
        (verdict.claimed or "(empty)", WHITE),
        (f"{what} show", GREY),
        (verdict.implied.replace("\\", ", ") or "nothing sure enough", WHITE),
        (told.format(what), colour),
    ]
    x = EDGE + 76.0
    for text, shade in parts:
        pen.text((x, 166), text, shade, font(25), anchor="lm")
        x += pen.textlength(text, font(25)) + 22


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
    Agreement.UNSURE: (_ring, "the {} are not sure"),
}


# -- best images -----------------------------------------------------------------------------------------------------


def _tiles(
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    answer: SeriesLabels,
    pictures: Mapping[str, FloatImage | None],
    words: Vocabulary,
) -> None:
    """The best image of each station, as large as there is room."""
    shown = [finding for finding in answer.findings if finding.name in pictures]
    for finding, (left, top, side) in zip(shown, _places(len(shown)), strict=True):
        tile = _tile(pictures[finding.name], answer.modality, finding.name, side)
        image.paste(tile, (left, top))
        pen.rectangle((left, top, left + side - 1, top + side - 1), outline=LINE)
        best = answer.slices[finding.best].source.shown_number
        sure = SAID_BY_PERSON if finding.name in answer.by_person else f"{finding.certainty:.0%}"
        told = f"{shown_name(finding.name, words)}  image {best}  {sure}"
        pen.text((left, top + side + 8), told, STATION, font(max(13, min(20, side // 14))))


def _places(count: int) -> list[tuple[int, int, int]]:
    """Left, top and side of so many tiles."""
    wide, gap, caption = TILES[1] - TILES[0], 16, 40
    sides = {
        columns: min((wide + gap) // columns - gap, (BOTTOM + 60 - TOP) // -(-count // columns) - caption - 4)
        for columns in range(1, 5)
        if count
    }
    columns = max(sides, key=lambda one: sides[one], default=1)
    side = sides.get(columns, 0)
    return [
        (TILES[0] + (i % columns) * (side + gap), TOP + (i // columns) * (side + caption + 4), side)
        for i in range(count)
    ]


def _tile(plane: FloatImage | None, modality: str, station: str, side: int) -> Image.Image:
    if plane is None:
        empty = Image.new("RGB", (side, side), PANEL)
        told, middle = "image cannot be shown", (side / 2, side / 2)
        ImageDraw.Draw(empty).text(middle, told, GREY, font(max(13, min(20, side // 14))), anchor="mm")
        return empty
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


def _legend(pen: ImageDraw.ImageDraw, caption: Caption) -> None:
    x, y = float(EDGE if caption.people.told else BARS[0]), SIZE[1] - 56
    for text, draw in _legend_items(caption.people):
        draw(pen, round(x), y)
        pen.text((x + 40, y), text, GREY, font(16), anchor="lm")
        x += 40 + pen.textlength(text, font(16)) + 34
    if caption.doubts:
        told = _cut(pen, f"The model was not sure: {caption.doubts}", TILES[0] - EDGE - 20, 16)
        pen.text((EDGE, y - 30), told, GREY, font(16), anchor="lm")


def _legend_items(people: Correction) -> Iterator[tuple[str, Callable[[ImageDraw.ImageDraw, int, int], None]]]:
    def filled(colour: Colour) -> Callable[[ImageDraw.ImageDraw, int, int], None]:
        return lambda pen, x, y: pen.rectangle((x, y - 7, x + 30, y + 7), colour)

    def patterned(**which: NDArray[np.bool_]) -> Callable[[ImageDraw.ImageDraw, int, int], None]:
        never = np.zeros(31, np.bool_)
        masks = {"said": never, "doubted": never, "added": never, "removed": never, **which}
        row = Row("", station=False, probable=np.ones(31) * ("doubted" in which), best=None, sure="", **masks)
        return lambda pen, x, y: pen._image.paste(Image.fromarray(bar(row, 31, 15)), (x, y - 7))

    everywhere = np.ones(31, np.bool_)
    yield "station", filled(STATION)
    if people.verified:
        yield "organ", filled(ORGAN)
    else:
        yield "organ (height: how probable)", filled(ORGAN)
        yield "not sure", patterned(doubted=everywhere)
        yield "not said", filled(FAINT)
    if people.told:
        yield "added by a person", patterned(added=everywhere)
        yield "removed by a person", patterned(removed=everywhere)
        yield "a person said so, no certainty of the model", _person
    yield "best image", lambda pen, x, y: pen.polygon([(x + 9, y - 5), (x + 21, y - 5), (x + 15, y + 6)], WARNING)


def _person(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.text((x + 34, y), PERSONS, PERSON, font(15), anchor="rm")


def _footer(pen: ImageDraw.ImageDraw, answer: SeriesLabels, caption: Caption) -> None:
    bundle = answer.bundle
    told = f"{bundle.name} {bundle.version}, weights {bundle.weights_sha256[:12]}    {caption.finished}"
    pen.text((EDGE, SIZE[1] - 26), f"{told}    report {caption.report_uid}", GREY, font(15), anchor="lm")
