"""`Read` <-> bytes: how planes leave the process that decodes them, and how they wait on disk. No bit changes."""

from __future__ import annotations

import json
import zlib
from dataclasses import astuple
from itertools import accumulate
from typing import Any

import numpy as np

from labeler.dicom import Read
from labeler.slices import FloatImage, Plane, Skip, Skipped, Source

_MAGIC = b"PLN1"


def packed(read: Read) -> bytes:
    """Magic, CRC-32 of the rest, length of the description, description (JSON), pixels (float32, little endian)."""
    description = json.dumps(
        {
            "series": [read.series_instance_uid, read.modality],
            "planes": [
                [plane.pixels.shape, plane.plane, plane.mm, plane.normal, plane.position, astuple(plane.source)]
                for plane in read.planes
            ],
            "skipped": read.skipped and [astuple(read.skipped.source), read.skipped.reason.value, read.skipped.detail],
        }
    ).encode()
    body = [len(description).to_bytes(4, "little"), description, *(_raw(plane.pixels) for plane in read.planes)]
    check = 0
    for part in body:
        check = zlib.crc32(part, check)
    return b"".join([_MAGIC, check.to_bytes(4, "little"), *body])


def unpacked(data: bytes | bytearray) -> Read:
    """What `packed` was given.

    Raises:
        ValueError: damaged, cut short, or of another kind.
    """
    view = memoryview(data)
    if len(view) < 12 or view[:4] != _MAGIC or zlib.crc32(view[8:]) != int.from_bytes(view[4:8], "little"):
        raise ValueError("not the planes that were written")
    begin = 12 + int.from_bytes(view[8:12], "little")
    told: dict[str, Any] = json.loads(bytes(view[12:begin]))
    pixels = np.frombuffer(data, "<f4", offset=begin)
    ends = accumulate(rows * columns for (rows, columns), *_ in told["planes"])
    planes = tuple(_plane(pixels[: int(end)], row) for end, row in zip(ends, told["planes"], strict=True))
    series_instance_uid, modality = told["series"]
    return Read(series_instance_uid, modality, planes, told["skipped"] and _skipped(*told["skipped"]))


def _raw(pixels: FloatImage) -> bytes:
    return pixels.astype("<f4", copy=False).tobytes()


def _plane(until: FloatImage, row: list[Any]) -> Plane:
    (rows, columns), name, mm, normal, position, source = row
    pixels = until[len(until) - rows * columns :].reshape(rows, columns)
    return Plane(pixels, name, mm, tuple(normal), position, Source(*source))


def _skipped(source: list[Any], reason: str, detail: str) -> Skipped:
    return Skipped(Source(*source), Skip(reason), detail)
