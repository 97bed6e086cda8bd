"""Size, colours and letters of the evidence sheet. Pure."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont

Colour = tuple[int, int, int]

SIZE = (1920, 1080)
#: Margin on the left and right; where bars and tiles begin and end, from above.
EDGE, TOP, BOTTOM = 48, 236, 968
#: Left and right of the bars, and of the tiles.
BARS, TILES = (316, 1330), (1392, SIZE[0] - EDGE)

GROUND, PANEL, LINE = (13, 17, 23), (22, 28, 36), (48, 56, 66)
WHITE, GREY, FAINT = (236, 240, 244), (150, 160, 171), (58, 68, 80)
STATION, ORGAN, WARNING, PERSON = (86, 180, 233), (222, 230, 238), (240, 160, 40), (64, 200, 150)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
