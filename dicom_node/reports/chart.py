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

#: Window of a picture by station, level and width in HU; else soft tissue.
_WINDOWS = {"chest": (-400.0, 1500.0)}
_SOFT_TISSUE = (40.0, 400.0)


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
    image = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(image)
    _heading(pen, answer, caption)
    _verdict(pen, caption.verdict)
    _bars(image, pen, answer, words)
    _tiles(image, pen, answer, pictures, words)
    _legend(pen)
    _footer(pen, answer, caption)
    return np.asarray(image)


def _heading(pen: ImageDraw.ImageDraw, answer: SeriesLabels, caption: Caption) -> None:
    pen.text((EDGE, 36), "Anatomy seen by AI", WHITE, font(38))
    told = [answer.modality, caption.series, _images(len(answer.slices)), answer.plane or ""]
    pen.text((EDGE, 92), "   ".join(part for part in told if part), GREY, font(23))
    warning, right = "NOT VERIFIED BY A PERSON - NOT FOR DIAGNOSIS", SIZE[0] - EDGE
    wide = pen.textlength(warning, font(22))
    pen.rounded_rectangle((right - wide - 40, 36, right, 84), 24, outline=WARNING, width=2)
    pen.text((right - 20, 60), warning, WARNING, font(22), anchor="rm")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


# -- the verdict -----------------------------------------------------------------------------------------------------


def _verdict(pen: ImageDraw.ImageDraw, verdict: Verdict) -> None:
    """Header against pixels: a sign, and the same in words."""
    colour = WARNING if verdict.agreement == Agreement.DIFFER else STATION
    pen.rounded_rectangle((EDGE, 136, SIZE[0] - EDGE, 196), 10, PANEL)
    sign, told = _TOLD[verdict.agreement]
    sign(pen, EDGE + 36, 166, colour)
    parts = [
        ("Body Part Examined", GREY),
        (verdict.claimed or "(empty)", WHITE),
        ("pixels show", GREY),
        (verdict.implied.replace("\\", ", ") or "nothing sure enough", WHITE),
        (told, colour),
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
    Agreement.UNSURE: (_ring, "the pixels are not sure"),
}


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
    x, y = float(BARS[0]), SIZE[1] - 56
    for text, draw in _legend_items():
        draw(pen, round(x), y)
        pen.text((x + 40, y), text, GREY, font(16), anchor="lm")
        x += 40 + pen.textlength(text, font(16)) + 34


def _legend_items() -> Iterator[tuple[str, Callable[[ImageDraw.ImageDraw, int, int], None]]]:
    def filled(colour: Colour) -> Callable[[ImageDraw.ImageDraw, int, int], None]:
        return lambda pen, x, y: pen.rectangle((x, y - 7, x + 30, y + 7), colour)

    def striped(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
        everywhere = np.ones(1, np.bool_)
        row = _Row("", False, ~everywhere, everywhere, np.ones(1), None)
        pen._image.paste(Image.fromarray(_bar(row, 31, 15)), (x, y - 7))

    yield "station", filled(STATION)
    yield "organ (height: how probable)", filled(ORGAN)
    yield "not sure", striped
    yield "not said", filled(FAINT)
    yield "best image", lambda pen, x, y: pen.polygon([(x + 9, y - 5), (x + 21, y - 5), (x + 15, y + 6)], WARNING)


def _footer(pen: ImageDraw.ImageDraw, answer: SeriesLabels, caption: Caption) -> None:
    bundle = answer.bundle
    told = f"{bundle.name} {bundle.version}, weights {bundle.weights_sha256[:12]}    {caption.finished}"
    pen.text((EDGE, SIZE[1] - 26), f"{told}    report {caption.report_uid}", GREY, font(15), anchor="lm")
