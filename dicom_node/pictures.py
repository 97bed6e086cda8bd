"""The pictures that a sheet shows beside its bars, decoded as the labeler decodes: in a child, within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dicom_node.settings import Settings
from labeler.dicom import Read
from labeler.result import SeriesLabels
from labeler.sandbox import Bounds, shared_sandbox
from labeler.slices import FloatImage, Source

#: Longest side of a picture; a file of many frames comes whole from its child, so not the sharpest that there could be.
_SIDE = 256


def best_pictures(settings: Settings, answer: SeriesLabels, paths: Mapping[str, Path]) -> dict[str, FloatImage | None]:
    """The upright plane that shows each station of an answer best; None where it cannot be read."""
    best = {f.name: answer.slices[f.best].source for f in answer.findings if f.kind == "station"}
    sandbox = shared_sandbox(_SIDE, 1, Bounds(settings.decode_seconds, settings.decode_mib))
    files = {str(source.sop_instance_uid) for source in best.values()}
    read = {uid: sandbox.read(paths[uid]) for uid in sorted(files) if uid in paths}
    return {name: _picture(read.get(str(source.sop_instance_uid)), source) for name, source in best.items()}


def _picture(read: Read | None, source: Source) -> FloatImage | None:
    planes = read.planes if read else ()
    return next((plane.pixels for plane in planes if source.frame in (None, plane.source.frame)), None)
