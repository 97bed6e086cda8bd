"""The labeler's answer for one series: frozen, and JSON both ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labeler.prompts import Modality
from labeler.slices import Skipped, Source
from labeler.vocabulary import Kind


@dataclass(frozen=True)
class BundleInfo:
    """Which model said so; everything an auditor needs to tell two answers apart."""

    name: str
    version: str
    fingerprint: str
    weights_sha256: str
    vocabulary: str
    thresholds: tuple[tuple[str, float], ...]
    smoothing: str
    calibrated: bool

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "thresholds": dict(self.thresholds)}


@dataclass(frozen=True)
class SliceLabels:
    """What one image shows: a probability per label and the names of those present, in the vocabulary's order.

    `unsure` names the labels that may be there: neither sure enough to say so nor to deny it.
    """

    source: Source
    plane: str
    probabilities: tuple[float, ...]
    present: tuple[str, ...]
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One label over the series.

    Attributes:
        ranges: inclusive positions in `SeriesLabels.slices` between which every image shows it.
        best: position of the image that shows it most surely.
        certainty, mean_certainty: highest and mean probability over the images that show it.
    """

    name: str
    kind: Kind
    ranges: tuple[tuple[int, int], ...]
    best: int
    certainty: float
    mean_certainty: float

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    @property
    def positions(self) -> Iterator[int]:
        """Of every image that shows it."""
        return (position for first, last in self.ranges for position in range(first, last + 1))


@dataclass(frozen=True)
class SeriesLabels:
    """The answer for one series. `slices` in anatomical order (in the file's order for NIfTI).

    `by_person` names the labels that are where a person said, for which no certainty of the model speaks.
    """

    modality: Modality
    plane: str | None
    names: tuple[str, ...]
    slices: tuple[SliceLabels, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    bundle: BundleInfo
    series_instance_uid: str | None = None
    by_person: frozenset[str] = frozenset()

    @property
    def stations(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings if finding.kind == "station")

    @property
    def organs(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings if finding.kind == "organ")

    @property
    def unsure(self) -> tuple[str, ...]:
        """Labels that no image surely shows and at least one may show."""
        doubted = {name for item in self.slices for name in item.unsure}
        sure = {finding.name for finding in self.findings}
        return tuple(name for name in self.names if name in doubted - sure)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable form. A skipped slice of a volume keeps its row: nothing present, and the reason."""
        rows = [self._slice_json(position, item) for position, item in enumerate(self.slices)]
        rows += [self._skipped_json(item) for item in self.skipped if item.source.sop_instance_uid is None]
        rows.sort(key=lambda row: row["index"])
        return {
            "series_instance_uid": self.series_instance_uid,
            "modality": self.modality,
            "plane": self.plane,
            "slices": rows,
            "skipped": [
                {
                    "index": item.source.index,
                    "sop_instance_uid": item.source.sop_instance_uid,
                    "reason": item.reason.value,
                    "detail": item.detail,
                }
                for item in self.skipped
            ],
            "stations": list(self.stations),
            "organs": list(self.organs),
            "unsure": list(self.unsure),
            "bundle": self.bundle.to_json(),
        }

    def _slice_json(self, position: int, item: SliceLabels) -> dict[str, Any]:
        index = item.source.index if item.source.sop_instance_uid is None else position
        labels = {name: round(p, 4) for name, p in zip(self.names, item.probabilities, strict=True)}
        row = {
            "index": index,
            "sop_instance_uid": item.source.sop_instance_uid,
            "labels": labels,
            "present": list(item.present),
            "unsure": list(item.unsure),
        }
        return row if item.source.frame is None else {**row, "frame": item.source.frame}

    def _skipped_json(self, item: Skipped) -> dict[str, Any]:
        return {
            "index": item.source.index,
            "sop_instance_uid": None,
            "labels": dict.fromkeys(self.names, 0.0),
            "present": [],
            "unsure": [],
            "skipped": item.reason.value,
        }
