"""DICOM files -> series of planes: single-frame and Enhanced CT and MR, every transfer syntax with a decoder.

Only attributes and pixels are read here; no network. Whatever is wrong with a file becomes a `Skip` with a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.utils import pixel_array

from labeler.errors import is_the_systems
from labeler.prompts import Modality
from labeler.slices import SMALLEST_SIDE, FloatImage, Plane, Series, Skip, Skipped, Source, make_plane, make_series

#: Values of Image Type (0008,0008) that tell a rendering from a slice.
_RENDERED = {"MIP", "MINIP", "PROJECTION IMAGE", "VOLUME_RENDERED", "VRT", "SCREEN SAVE", "DOSE_INFO", "REPORT"}
#: Values that tell the phase of an MR signal from its magnitude (PS3.3 C.8.3.1.1.1, and as scanners abbreviate it).
_PHASE = {"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP"}
#: Rescale Types of CT values that are no Hounsfield units: densities, effective atomic numbers (PS3.3 C.11.1.1.2).
_NO_HU = {"MGML", "Z_EFF", "ED", "EDW", "PCT"}

#: mm from the origin beyond which no patient lies.
_FURTHEST = 1e6

#: Bytes that the frames of one file may unpack to; as many as uncompressed Pixel Data can have (PS3.5 7.1.1).
MOST_BYTES = 1 << 32


class _Unusable(Exception):
    def __init__(self, reason: Skip, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Read:
    """What one file came to: its planes, or why it has none. The place of its sources in a series is still 0."""

    series_instance_uid: str = ""
    modality: str = ""
    planes: tuple[Plane, ...] = ()
    skipped: Skipped | None = None


def read_dicom(paths: Iterable[Path], max_side: int) -> list[Series]:
    """Read files, grouped by Series Instance UID; unreadable files form a series of their own kind.

    Returns series in the order of their UIDs. A series without any usable plane has no stacks.
    """
    return series_of(read_file(path, max_side) for path in sorted(paths))


def read_file(
    path: Path, max_side: int, most_bytes: int = MOST_BYTES, progress: Callable[[], None] = lambda: None
) -> Read:
    """Read one file; `progress` is called after every frame. Whatever is wrong with the file is told, not raised."""
    try:
        dataset = dcmread(path)
        uid, source = str(dataset.get("SeriesInstanceUID", "")), _source(dataset)
        modality = str(dataset.get("Modality", ""))
    except MemoryError:
        return Read(skipped=Skipped(Source(0), Skip.TOO_LARGE, "its data set"))
    except Exception as error:  # a file may hold anything, and parsers raise whatever they meet
        reason = Skip.AWAY if is_the_systems(error) else Skip.NOT_DICOM
        told = getattr(error, "strerror", None) or type(error).__name__
        return Read(skipped=Skipped(Source(0), reason, f"{path.name}: {told}"))
    try:
        return Read(uid, modality, tuple(_planes(dataset, max_side, most_bytes, progress)))
    except _Unusable as problem:
        skipped = Skipped(source, problem.reason, problem.detail)
    except MemoryError:
        skipped = Skipped(source, Skip.TOO_LARGE, "no memory left")
    except Exception as error:  # likewise a header; the message may quote a patient's data and stays out
        skipped = Skipped(source, Skip.UNDECODABLE, type(error).__name__)
    return Read(uid, modality, skipped=skipped)


def series_of(files: Iterable[Read]) -> list[Series]:
    """Files in the order of their places -> series in the order of their UIDs; see `read_dicom`."""
    planes: dict[str, list[Plane]] = defaultdict(list)
    skipped: dict[str, list[Skipped]] = defaultdict(list)
    modalities: dict[str, str] = {}
    for index, read in enumerate(files):
        uid = read.series_instance_uid
        modalities.setdefault(uid, read.modality)
        planes[uid] += (replace(plane, source=replace(plane.source, index=index)) for plane in read.planes)
        if read.skipped:
            skipped[uid].append(replace(read.skipped, source=replace(read.skipped.source, index=index)))
    return [
        make_series(_modality(modalities[uid]), planes[uid], skipped[uid], uid or None) for uid in sorted(modalities)
    ]


def _modality(value: str) -> Modality:
    return cast(Modality, value) if value in ("CT", "MR") else "CT"


def _planes(
    dataset: FileDataset | Dataset, max_side: int, most_bytes: int, progress: Callable[[], None]
) -> list[Plane]:
    """All planes of one SOP Instance; `_Unusable` with the reason when there is none."""
    _refuse(dataset, most_bytes)
    frames = int(dataset.get("NumberOfFrames") or 1)
    multiframe = "PerFrameFunctionalGroupsSequence" in dataset
    planes: list[Plane] = []
    for number, pixels in enumerate(_decoded(dataset), start=1):
        groups = _functional_groups(dataset, number - 1) if multiframe else (dataset,)
        columns, rows, origin = _geometry(groups)
        source = _source(dataset, number if frames > 1 or multiframe else None)
        values = _rescaled(_unpadded(pixels, dataset), groups)
        upright = make_plane(values, columns, rows, origin, source, max_side, _spacing(groups))
        planes.append(upright)
        progress()
    if not planes:
        raise _Unusable(Skip.UNDECODABLE, "no frames")
    if all(np.ptp(plane.pixels) == 0 for plane in planes):
        raise _Unusable(Skip.EMPTY)
    return planes


def _refuse(dataset: Dataset, most_bytes: int) -> None:
    modality = dataset.get("Modality")
    if modality not in ("CT", "MR"):
        raise _Unusable(Skip.MODALITY, f"Modality is {modality or 'absent'}")
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise _Unusable(Skip.NO_PIXELS)
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric == "PALETTE COLOR":
        raise _Unusable(Skip.COLOUR, photometric)
    if min(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)) < SMALLEST_SIDE:
        raise _Unusable(Skip.TOO_SMALL, f"{dataset.get('Rows')} x {dataset.get('Columns')}")
    _refuse_kind(dataset)
    if (unpacked := _unpacked_bytes(dataset)) > most_bytes:
        raise _Unusable(Skip.TOO_LARGE, f"it would unpack to {unpacked >> 20} MiB, {most_bytes >> 20} MiB are allowed")


def _refuse_kind(dataset: Dataset) -> None:
    """Pictures of something else than the anatomy of one slice."""
    modality, kinds = dataset.Modality, {str(value).upper() for value in _values(dataset.get("ImageType"))}
    if modality == "CT" and "LOCALIZER" in kinds:
        raise _Unusable(Skip.LOCALIZER)
    if "DERIVED" in kinds and kinds & _RENDERED:
        raise _Unusable(Skip.DERIVED, "\\".join(sorted(kinds)))
    if "MOSAIC" in kinds:
        raise _Unusable(Skip.MOSAIC)
    if modality == "MR" and {*kinds, str(dataset.get("ComplexImageComponent", ""))} & _PHASE:
        raise _Unusable(Skip.PHASE)
    groups = _functional_groups(dataset, 0) if "PerFrameFunctionalGroupsSequence" in dataset else (dataset,)
    if modality == "CT" and (told := str(_first(groups, "RescaleType"))) in _NO_HU:
        raise _Unusable(Skip.NO_HU, told)


def _unpacked_bytes(dataset: Dataset) -> int:
    """What the header declares, before anything is decoded."""
    pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * int(dataset.get("NumberOfFrames") or 1)
    return pixels * int(dataset.get("BitsAllocated") or 16) // 8


def _values(value: object) -> Sequence[object]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(cast(Iterable[object], value))


def instance_number(dataset: Dataset) -> int | None:
    """Instance Number (0020,0013), which some scanners begin at 0; None where there is none that can be read."""
    try:
        return int(dataset.InstanceNumber)
    except (AttributeError, TypeError, ValueError):
        return None


def _source(dataset: Dataset, frame: int | None = None) -> Source:
    number = instance_number(dataset)
    return Source(
        0,
        str(dataset.get("SOPInstanceUID", "")) or None,
        str(dataset.get("SOPClassUID", "")) or None,
        frame,
        number,
    )


def _decoded(dataset: Dataset) -> Iterator[FloatImage]:
    """Frames as float32 (rows, columns). A decoder may raise anything: its failure is the image's, not ours."""
    try:
        for index in range(int(dataset.get("NumberOfFrames") or 1)):
            frame = pixel_array(dataset, index=index, raw=True)
            if frame.ndim != 2:
                raise _Unusable(Skip.COLOUR, f"decoded to {frame.shape}")
            yield _finite(frame.astype(np.float32)) if frame.dtype.kind == "f" else frame.astype(np.float32)
    except (_Unusable, MemoryError):
        raise
    except Exception as error:
        raise _Unusable(Skip.UNDECODABLE, f"{type(error).__name__}: {error}"[:200]) from error


def _finite(frame: FloatImage) -> FloatImage:
    """Maps in floating point tell what they do not know by NaN; it becomes their lowest value, or 0."""
    known = np.isfinite(frame)
    lowest = frame.min(where=known, initial=np.inf) if known.any() else 0.0
    finite: FloatImage = np.where(known, frame, np.float32(lowest))
    return finite


def _unpadded(pixels: FloatImage, dataset: Dataset) -> FloatImage:
    """What only fills an MR picture up becomes as dark as the darkest of the rest (PS3.3 C.7.5.1.1.2)."""
    padding, limit = (dataset.get(f"PixelPadding{which}") for which in ("Value", "RangeLimit"))
    if dataset.Modality != "MR" or not isinstance(padding, int) or padding == 0:  # 0 is dark
        return pixels
    low, high = sorted((padding, limit if isinstance(limit, int) else padding))
    shown = (pixels < low) | (pixels > high)
    if shown.all() or not shown.any():
        return pixels
    filled: FloatImage = np.where(shown, pixels, pixels[shown].min())
    return filled


def _functional_groups(dataset: Dataset, index: int) -> tuple[Dataset, ...]:
    """Per-frame before shared functional groups (PS3.3 C.7.6.16), then the data set itself."""
    per_frame = dataset.PerFrameFunctionalGroupsSequence
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    frame = [per_frame[index]] if index < len(per_frame) else []
    macros = [item for group in (*frame, *shared) for element in group if element.VR == "SQ" for item in element.value]
    return (*macros, dataset)


def _first(groups: Sequence[Dataset], keyword: str) -> object | None:
    return next((g.get(keyword) for g in groups if g.get(keyword) not in (None, "")), None)


def _geometry(groups: Sequence[Dataset]) -> tuple[list[float], list[float], list[float]]:
    orientation, position = _numbers(groups, "ImageOrientationPatient"), _numbers(groups, "ImagePositionPatient")
    columns, rows = orientation[:3], orientation[3:]
    if len(orientation) != 6 or not 0.5 <= np.linalg.norm(np.cross(columns, rows)) <= 2:
        raise _Unusable(Skip.NO_GEOMETRY)
    known = len(position) == 3 and all(abs(mm) < _FURTHEST for mm in position)
    return columns, rows, position if known else [np.nan] * 3


def _numbers(groups: Sequence[Dataset], keyword: str) -> list[float]:
    """The values of an attribute; none where one of them is no number."""
    try:
        return [float(str(value)) for value in _values(_first(groups, keyword))]
    except (TypeError, ValueError):
        return []


def _spacing(groups: Sequence[Dataset]) -> tuple[float, float] | None:
    """mm between rows and between columns (0028,0030), where the image says it believably."""
    value = _numbers(groups, "PixelSpacing")
    if len(value) != 2:
        return None
    rows, columns = value
    return (rows, columns) if 0.01 < rows < 50 and 0.01 < columns < 50 else None


def _rescaled(pixels: FloatImage, groups: Sequence[Dataset]) -> FloatImage:
    """Stored values -> HU or MR values (PS3.3 C.11.1.1.2); a slope of 0, with which nothing could be seen, is none."""
    slope, intercept = _number(groups, "RescaleSlope", 1.0) or 1.0, _number(groups, "RescaleIntercept", 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        values: FloatImage = (pixels * slope + intercept).astype(np.float32)
    if not np.isfinite(values).all():
        raise _Unusable(Skip.UNDECODABLE, f"Rescale Slope {slope:g} and Intercept {intercept:g} make no numbers of it")
    return values


def _number(groups: Sequence[Dataset], keyword: str, otherwise: float) -> float:
    value = _first(groups, keyword)
    return otherwise if value is None else float(str(value))
