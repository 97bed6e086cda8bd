"""What was promised, held against what lies there when the night is over."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.chaos.pacs import LIST
from dicom_node.chaos.plan import ASIDE, UNLABELLED
from dicom_node.chaos.scans import Expected, Image
from dicom_node.demo.archive import replaced_by, source_series
from dicom_node.ledger import Ledger, schema
from dicom_node.spool import Spool
from dicom_node.study import OPEN, State

#: Descriptors that one of the node's processes may hold when all is done.
_DESCRIPTORS = 200


@dataclass(frozen=True)
class Verdict:
    """Findings, each a sentence; none where every promise was kept."""

    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    astray: tuple[str, ...]
    left_behind: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return not (self.lost or self.doubled or self.astray or self.left_behind)


def judged(
    expected: Sequence[Expected],
    sent: Collection[Image],
    acknowledged: Collection[Image],
    ledger: Ledger,
    home: Path,
    pacs: Path,
    pids: Sequence[tuple[int, str]],
) -> Verdict:
    """Hold everything against everything.

    Args:
        home: of the node.
        pacs: the archive's folder.
        pids: the node's processes, with their names.
    """
    reports = reports_in(pacs)
    return Verdict(
        lost=(
            *_unanswered(sent, acknowledged),
            *_not_kept(acknowledged, ledger, home),
            *_unreported(expected, reports),
        ),
        doubled=tuple(_doubled(expected, reports, pacs)),
        astray=(*_astray(expected, ledger), *_unasked(sent, home)),
        left_behind=(*_files(home), *_leases(ledger), *_descriptors(pids, home)),
    )


def settled(expected: Sequence[Expected], ledger: Ledger) -> int:
    """How many studies have come to where they should end, and owe nothing to anybody; 0 while the ledger is away."""
    try:
        states = {row.study_uid: row.state for row in ledger.studies()}
        owed = {row.study_uid for row in ledger.rows(select(schema.delivery.c.study_uid).where(_open()))}
    except SQLAlchemyError:
        return 0
    return sum(states.get(one.study_uid) in _ends(one) and one.study_uid not in owed for one in expected)


def _open() -> ColumnElement[bool]:
    return schema.delivery.c.state.in_(OPEN)


def _ends(expected: Expected) -> tuple[State, ...]:
    """Where a study should end; what needs nothing more may be purged when the disk runs low."""
    if expected.course in ASIDE:
        return (State.QUARANTINED,)
    return (State.UNLABELLED if expected.course in UNLABELLED else State.SENT, State.PURGED)


# -- lost ------------------------------------------------------------------------------------------------------------


def _unanswered(sent: Collection[Image], acknowledged: Collection[Image]) -> Iterator[str]:
    for image in set(sent) - set(acknowledged):
        yield f"image {image.sop_instance_uid}: its scanner was never told 0x0000"


def _not_kept(acknowledged: Collection[Image], ledger: Ledger, home: Path) -> Iterator[str]:
    """Acknowledged images that are not in the spool byte for byte, or not in the ledger."""
    kept = _digests(home)
    columns = select(schema.instance.c.study_uid, schema.instance.c.digest)
    entered = {(row.study_uid, row.digest) for row in ledger.rows(columns)}
    purged = {row.study_uid for row in ledger.studies(schema.study.c.state == State.PURGED)}
    for image in acknowledged:
        key = (image.study_uid, image.digest)
        if key not in kept and image.study_uid not in purged:
            yield f"image {image.sop_instance_uid}: acknowledged, but not in the spool as it was sent"
        elif key not in entered:
            yield f"image {image.sop_instance_uid}: acknowledged and spooled, but not in the ledger"


def _digests(home: Path) -> set[tuple[str, str]]:
    return {(path.parent.name, Spool.digest_of(path)) for path in Spool(home).files()}


def _unreported(expected: Sequence[Expected], reports: Sequence[Dataset]) -> Iterator[str]:
    current = _current(reports)
    for one in expected:
        for series_uid, images in one.reports.items():
            found = current.get(series_uid, [])
            if not found:
                yield f"series {series_uid} ({one.course}): PACS has no current report"
            elif covered(found[-1]) != images:
                told = f"{len(covered(found[-1]) & images)} of its {len(images)} images"
                yield f"series {series_uid} ({one.course}): its report covers {told}"


# -- doubled ---------------------------------------------------------------------------------------------------------


def _doubled(expected: Sequence[Expected], reports: Sequence[Dataset], pacs: Path) -> Iterator[str]:
    wanted = {series_uid for one in expected for series_uid in one.reports}
    for series_uid, found in _current(reports).items():
        if len(found) > 1:
            yield f"series {series_uid}: {len(found)} reports at PACS that do not succeed each other"
        if series_uid not in wanted:
            yield f"series {series_uid}: reported, though it should not be"
    digests: dict[str, set[str]] = defaultdict(set)
    for line in _lines(pacs / LIST):
        uid, _, digest = line.partition(" ")
        digests[uid].add(digest)
    for uid, different in digests.items():
        if len(different) > 1:
            yield f"object {uid}: sent with {len(different)} different contents under one UID"


def reports_in(pacs: Path) -> list[Dataset]:
    """All reports that the archive keeps."""
    found = (dcmread(path) for path in sorted(pacs.glob("*.dcm")))
    return [report for report in found if report.SOPClassUID != SecondaryCaptureImageStorage]


def _current(reports: Sequence[Dataset]) -> dict[str, list[Dataset]]:
    """By series the reports that no other at the archive succeeds."""
    replaced = {uid for report in reports for uid in replaced_by(report)}
    current: dict[str, list[Dataset]] = defaultdict(list)
    for report in reports:
        if report.SOPInstanceUID not in replaced:
            current[source_series(report)].append(report)
    return current


def covered(report: Dataset) -> frozenset[str]:
    """SOP Instance UIDs of the images that a report is about."""
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    return frozenset(str(item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# -- astray ----------------------------------------------------------------------------------------------------------


def _astray(expected: Sequence[Expected], ledger: Ledger) -> Iterator[str]:
    """Studies that did not come to their end, with what the ledger says of them."""
    rows = {row.study_uid: row for row in ledger.studies()}
    for one in expected:
        row = rows.get(one.study_uid)
        if row is None or row.state not in _ends(one):
            told = f"{row.state} ({row.reason or 'no reason'}; attempt {row.attempts})" if row else "unknown"
            yield f"study {one.study_uid} ({one.course}): {told} instead of {_ends(one)[0]}"
    waiting = select(schema.delivery.c.report_uid, schema.delivery.c.state, schema.delivery.c.detail).where(_open())
    for delivery in ledger.rows(waiting):
        yield f"delivery of {delivery.report_uid}: {delivery.state} ({delivery.detail})"


def _unasked(sent: Collection[Image], home: Path) -> Iterator[str]:
    for study_uid, digest in _digests(home) - {(image.study_uid, image.digest) for image in sent}:
        yield f"study {study_uid}: the spool holds an object that nobody sent (BLAKE3 {digest[:12]}...)"


# -- left behind -----------------------------------------------------------------------------------------------------


def _files(home: Path) -> Iterator[str]:
    yield from (f"temporary file {path.relative_to(home)}" for path in home.rglob("*.part"))


def _leases(ledger: Ledger) -> Iterator[str]:
    working = select(schema.study.c.study_uid).where(schema.study.c.state == State.LABELLING)
    yield from (f"study {row.study_uid}: still leased" for row in ledger.rows(working))
    held = select(schema.delivery.c.report_uid).where(_open(), schema.delivery.c.lease_until > 0)
    yield from (f"delivery of {row.report_uid}: still leased" for row in ledger.rows(held))


def _descriptors(pids: Sequence[tuple[int, str]], home: Path) -> Iterator[str]:
    """Files of the home that are held open though they are gone, and processes with too many open."""
    for pid, name in pids:
        targets = Counter(_targets(pid))
        yield from (f"{name} holds {target}" for target in targets if str(home) in target and _is_gone(target))
        if targets.total() > _DESCRIPTORS:
            yield f"{name} holds {targets.total()} descriptors: {targets.most_common(3)}"


def _is_gone(target: str) -> bool:
    return target.endswith((".part", "(deleted)")) and not target.endswith("ballast (deleted)")


def _targets(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                yield str(descriptor.readlink()).partition(":")[0]
