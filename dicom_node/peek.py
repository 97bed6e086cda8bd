"""A file's attributes before its pixels, in bounded memory: a deflated data set may be a bomb (PS3.5 A.5)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

#: Bytes to which a deflated header may unpack.
_HEAD_BYTES = 64 << 20
_PIXELS = Tag("FloatPixelData")
#: The group of the functional groups: thousands of items, of which nobody asks here.
_FRAMES = 0x5200


def peek(path: Path, keywords: Sequence[str] | None = None) -> Dataset:
    """The data set of a file up to its pixels; of it only these attributes, where they are given.

    An attribute that cannot be read is left out.

    Raises what pydicom and zlib raise for a file that they cannot read.
    """
    header = _header(path, keywords)
    _leave_out_unreadable(header)
    return header


def _header(path: Path, keywords: Sequence[str] | None) -> Dataset:
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        wanted = None if keywords is None else list(keywords)
        return dcmread(path, stop_before_pixels=True, specific_tags=wanted)
    with path.open("rb") as file:
        head = file.read(144)
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), _HEAD_BYTES)
    tags: list[BaseTag | int] | None = None if keywords is None else [Tag(keyword) for keyword in keywords]
    return read_dataset(BytesIO(inflated), False, True, stop_when=_at_pixels, specific_tags=tags)


def _leave_out_unreadable(items: Dataset) -> None:
    for tag in list(items.keys()):
        if tag.group >= _FRAMES:
            continue
        try:
            element = items[tag]
        except Exception:  # pydicom parses values when they are asked for, and raises whatever it meets
            del items[tag]
            continue
        for item in element.value if element.VR == "SQ" else ():
            _leave_out_unreadable(item)


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) >= int(_PIXELS)
