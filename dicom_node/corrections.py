"""Corrections: made here (`dicom-node amend`), heard from PACS, and handed to training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.errors import Quarantine
from dicom_node.ledger import Ledger
from dicom_node.logs import where
from dicom_node.peek import peek
from dicom_node.pictures import best_pictures
from dicom_node.reports.amend import Amendment, amended
from dicom_node.reports.audit import AUDIT_CLASSES, correction, hear, predecessors_of
from dicom_node.reports.gate import inspected, passed_rejection, passed_sheet
from dicom_node.reports.header import compare
from dicom_node.reports.rejection import rejection_of
from dicom_node.reports.report import Predecessor, encode
from dicom_node.reports.restated import restated
from dicom_node.reports.sheet import corrected_sheet
from dicom_node.reports.word import Word, word_of
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.study import Instance, Kind, NotLabelled, Remark, RemarkKind, WrittenReport
from dicom_node.uids import derived, sheet_uid
from labeler.dicom import instance_number
from labeler.errors import is_the_systems
from labeler.prompts import Modality
from labeler.slices import Source
from labeler.sr import ReportedLabels, in_order, read_report
from labeler.vocabulary import vocabulary

log = structlog.get_logger("corrections")


def amend(
    settings: Settings,
    ledger: Ledger,
    spool: Spool,
    report_uid: str,
    amendment: Amendment,
) -> WrittenReport:
    """Write the verified successor of a report and put it on its way to every destination.

    Raises:
        Quarantine: no such report, a newer one exists, or its images are no longer in the spool.
        ConfigurationError: the changes change nothing.
    """
    row = _current(ledger, report_uid)
    report, words = dcmread(row.path), vocabulary()
    said = read_report(report, words)
    if said is None:
        raise Quarantine(f"report {report_uid} lists no images")
    instances = ledger.instances(row.study_uid)
    sources, header = _sources(said, instances, report_uid), _header(said, instances)
    made = amended(report, said, sources, header, amendment, words)
    uid = str(made.SOPInstanceUID)
    path = spool.store_report(uid, inspected(encode(made), report, {image for _, image in said.images}, words))
    written = replace(
        row,
        sop_instance_uid=uid,
        sop_class_uid=str(made.SOPClassUID),
        path=path,
        predecessor=report_uid,
        summary=_revised(row.summary, made, instances),
    )
    _put_on_its_way(settings, ledger, spool, written, made, correction(made, report, words))
    return written


def _put_on_its_way(
    settings: Settings, ledger: Ledger, spool: Spool, written: WrittenReport, made: Dataset, remark: Remark
) -> None:
    """Enter a correction with all that stands beside it, at once or not at all."""
    sheets = sheet_beside(settings, ledger, spool, written)
    beside = [(sheet, settings.receivers_of_sheets) for sheet in sheets]
    notes = rejections_beside(settings, ledger, spool, written, made)
    beside += [(note, settings.receivers_of_rejections) for note in notes]
    destinations = [peer.name for peer in settings.receivers_of_reports]
    ledger.enter_remark(remark, written.path, written, destinations, beside, alone=True)


def sheet_beside(settings: Settings, ledger: Ledger, spool: Spool, written: WrittenReport) -> list[WrittenReport]:
    """The sheet to a report that a person has corrected here, where somebody gets sheets.

    It follows from what is stored, and may be drawn again. Whatever keeps it from being drawn does not keep the
    correction from going out.
    """
    if not settings.receivers_of_sheets:
        return []
    try:
        report = dcmread(written.path)
        sheet = passed_sheet(_drawn(settings, ledger, written, report), report)
    except SQLAlchemyError:
        raise
    except Exception as error:  # a report that another system verified may hold anything
        told = str(error) if isinstance(error, Quarantine) else where(error)
        log.error("no sheet is drawn", report_uid=written.sop_instance_uid, reason=told)
        return []
    uid = str(sheet.SOPInstanceUID)
    path = spool.store_report(uid, encode(sheet))
    beside = replace(written, sop_instance_uid=uid, sop_class_uid=str(sheet.SOPClassUID), path=path)
    return [replace(beside, predecessor=None, kind=Kind.SHEET)]


def _drawn(settings: Settings, ledger: Ledger, written: WrittenReport, report: Dataset) -> Dataset:
    words, instances = vocabulary(), ledger.instances(written.study_uid)
    said = read_report(report, words)
    if said is None:
        raise Quarantine(f"report {written.sop_instance_uid} lists no images")
    of_series = {i.sop_instance_uid: i for i in instances if not i.conflict}
    sources = _sources(said, instances, written.sop_instance_uid)
    known = json.loads(written.summary or "{}")
    modality: Modality = "MR" if of_series[said.images[0][1]].modality == "MR" else "CT"
    frames = any(source.frame for source in sources)  # they stand as in their file
    plane = None if frames or not _as_labelled(ledger, written, said) else known.get("plane")
    answer = restated(report, said, sources, modality, plane, words)
    pictures = best_pictures(settings, answer, {uid: one.path for uid, one in of_series.items()})
    named = (ledger.issued.report(uid) for uid in predecessors_of(report))
    before = next((dcmread(row.path) for row in named if row is not None and row.path.exists()), None)
    return corrected_sheet(report, before, answer, pictures, _header(said, instances) or _claim(known))


def _as_labelled(ledger: Ledger, written: WrittenReport, said: ReportedLabels) -> bool:
    """Do a report's images stand as in the model's report on them, along the body? Other systems sort as they like."""
    content = written.source_series_uid, written.content
    of_study = ledger.issued.of_study(written.study_uid)
    first = next((one for one in of_study if (one.source_series_uid, one.content) == content), written)
    labelled = read_report(dcmread(first.path), vocabulary()) if first.path.exists() else None
    return labelled is not None and labelled.images == said.images


def draw_lost_sheet(settings: Settings, ledger: Ledger, spool: Spool, study_uid: str, series_uid: str) -> None:
    """Draw the sheet to a series' corrected report again, where its file is lost."""
    current = ledger.issued.current(study_uid, series_uid)
    sheet = ledger.issued.sheet(sheet_uid(current.sop_instance_uid)) if current else None
    if current and sheet and not sheet.path.exists() and _is_a_persons(ledger, current):
        sheet_beside(settings, ledger, spool, current)


def rejections_beside(
    settings: Settings, ledger: Ledger, spool: Spool, written: WrittenReport, successor: Dataset
) -> list[WrittenReport]:
    """The notes on the reports that a new one supersedes and on the sheets to them, written where somebody gets notes.

    None on what we did not write: a person's report came from PACS, and whoever stored it there answers for it. Of two
    successors that are written at once one is entered; so each has files of its own.
    """
    if not settings.receivers_of_rejections:
        return []

    def is_ours(uid: str) -> bool:
        return ledger.deliveries.has(uid) or ledger.instance(uid) is None

    named = list(predecessors_of(successor))
    earlier = [ledger.issued.report(uid) for uid in named] + [ledger.issued.sheet(sheet_uid(uid)) for uid in named]
    rejected = [
        dcmread(item.path) for item in earlier if item and is_ours(item.sop_instance_uid) and item.path.exists()
    ]
    notes = [passed_rejection(rejection_of(one, successor), one) for one in rejected]
    return [
        replace(
            written,
            sop_instance_uid=str(note.SOPInstanceUID),
            sop_class_uid=str(note.SOPClassUID),
            path=spool.store_report(derived(note.SOPInstanceUID, successor.SOPInstanceUID), encode(note)),
            predecessor=None,
            summary="",
            kind=Kind.REJECTION,
        )
        for note in notes
    ]


def _current(ledger: Ledger, report_uid: str) -> WrittenReport:
    row = ledger.issued.report(report_uid)
    if row is None:
        raise Quarantine(f"{report_uid}: no report of this node; `dicom-node status STUDY_UID` lists them")
    current = ledger.issued.current(row.study_uid, row.source_series_uid)
    if current is not None and current.sop_instance_uid != report_uid:
        raise Quarantine(f"{report_uid} has been superseded; amend {current.sop_instance_uid}")
    return row


def _sources(said: ReportedLabels, instances: Sequence[Instance], report_uid: str) -> list[Source]:
    """The report's images, or frames, with the numbers by which people know them."""
    paths = {instance.sop_instance_uid: instance.path for instance in instances if not instance.conflict}
    missing = [uid for _, uid in said.images if uid not in paths or not paths[uid].exists()]
    if missing:
        raise Quarantine(
            f"{len(missing)} of the {len(said.images)} images of report {report_uid} are no longer in the spool; "
            "push the study again, then amend"
        )
    framed = {uid for uid, frame in said.seen if frame is not None}
    sources: list[Source] = []
    for sop_class, uid in said.images:
        header = dcmread(paths[uid], stop_before_pixels=True, specific_tags=["InstanceNumber", "NumberOfFrames"])
        number = instance_number(header)
        frames: list[int | None] = [None]
        count = int(header.get("NumberOfFrames") or 1)
        if (uid, None) not in said.seen and (count > 1 or uid in framed):  # an Enhanced image may have one frame
            frames = list(range(1, count + 1))
        sources += [Source(len(sources), uid, sop_class, frame, number) for frame in frames]
    return sources


def _header(said: ReportedLabels, instances: Sequence[Instance]) -> Dataset | None:
    """Of the first image that a report judges; None where its file is gone or beyond reading."""
    first = next((i for i in instances if i.sop_instance_uid == said.images[0][1] and not i.conflict), None)
    try:
        return peek(first.path) if first else None
    except Exception:  # whatever a hostile file makes the parser raise; the report says nothing of the header then
        return None


def _revised(summary: str, made: Dataset, instances: Sequence[Instance]) -> str:
    """What the ledger keeps of a report, as it is after a correction; as it was where that has no groups to read."""
    words = vocabulary()
    said = read_report(made, words)
    if said is None or made.SOPClassUID == BasicTextSRStorage:
        return summary
    stations, organs = (in_order(names, said.by_image()) for names in (words.stations, words.organs))
    kept = {key: value for key, value in json.loads(summary or "{}").items() if key != "findings"}
    header = _header(said, instances) or _claim(kept)
    return json.dumps({**kept, "stations": stations, "organs": organs, **compare(header, stations, words).summary()})


def _claim(summary: Mapping[str, Any]) -> Dataset:
    """What the ledger knows of a header that cannot be read."""
    header = Dataset()
    header.BodyPartExamined = summary.get("header", {}).get("claimed", "")
    return header


# -- heard from PACS -----------------------------------------------------------------------------------------------


def listen(
    settings: Settings, ledger: Ledger, instances: Sequence[Instance]
) -> tuple[list[Instance], list[NotLabelled]]:
    """Take remarks out of a study's objects; returns those that are left to label, and why others were not heard."""
    left, notes = [], []
    for instance in instances:
        if instance.sop_class_uid not in AUDIT_CLASSES:
            left.append(instance)
        elif not instance.absent and not ledger.has_heard(instance.sop_instance_uid):
            notes += _heard(settings, ledger, instance)
    return left, notes


def _heard(settings: Settings, ledger: Ledger, instance: Instance) -> list[NotLabelled]:
    """Enter a remark, or say why there is none; an object beyond reading does not keep its study from its labels."""

    def left_out(reason: str, detail: str) -> list[NotLabelled]:
        return [NotLabelled(instance.sop_instance_uid, instance.series_uid, reason, detail)]

    allowed = any(peer.name == instance.peer and "audit" in peer.may for peer in settings.peers)
    try:
        data_set = dcmread(instance.path)
        remark = hear(data_set, _reports_of(ledger), vocabulary())
        successor = _successor(ledger, instance, remark, data_set) if remark else None
        holds = successor is not None and _can_hold(ledger, successor, data_set)
    except Exception as error:  # whatever a hostile document makes the parser raise is the document's own
        if isinstance(error, SQLAlchemyError) or is_the_systems(error):
            raise
        return left_out("document cannot be read", where(error))
    if remark is None:
        return left_out("no image, and no remark on a report of ours", str(data_set.get("Modality", "")))
    if not allowed:
        remedy = f'let [[peers]] "{instance.peer}" say so: may = ["push", "audit"]'
        return left_out(f"{remark.kind} not allowed", remedy)
    ledger.enter_remark(remark, instance.path, successor, holds=holds)
    log.warning(remark.kind.value, report_uid=remark.report_uid, study_uid=remark.study_uid, changes=remark.changes)
    return []


def _successor(ledger: Ledger, instance: Instance, remark: Remark, data_set: Dataset) -> WrittenReport | None:
    """The report that a correction is; None for a dispute."""
    before = ledger.issued.report(remark.report_uid)
    if remark.kind != RemarkKind.CORRECTION or before is None:
        return None
    return replace(
        before,
        sop_instance_uid=remark.sop_instance_uid,
        sop_class_uid=str(data_set.SOPClassUID),
        path=instance.path,
        predecessor=remark.report_uid,
        summary=_revised(before.summary, data_set, ledger.instances(before.study_uid)),
    )


def _can_hold(ledger: Ledger, correction: WrittenReport, data_set: Dataset) -> bool:
    """Can it be upheld where more images have been reported on meanwhile? Not a text copy, nor when images are gone."""
    images = (i for i in ledger.instances(correction.study_uid) if i.series_uid == correction.source_series_uid)
    return word_of(data_set, vocabulary()) is not None and not any(image.absent for image in images)


def _reports_of(ledger: Ledger) -> Callable[[str], Dataset | None]:
    def ours(uid: str) -> Dataset | None:
        row = ledger.issued.known_as(uid)
        return dcmread(row.path) if row else None

    return ours


# -- what was said holds ---------------------------------------------------------------------------------------------


def words_on(ledger: Ledger, study_uid: str, series_uid: str) -> tuple[Word, ...]:
    """What people have verified about images of a series, the oldest first."""
    said = [remark for remark, _ in reversed(ledger.remarks(study_uid)) if remark.kind == RemarkKind.CORRECTION]
    rows = (ledger.issued.report(remark.sop_instance_uid) for remark in said)
    words = (_word(row) for row in rows if row is not None and row.source_series_uid == series_uid)
    return tuple(word for word in words if word is not None)


def _word(row: WrittenReport) -> Word | None:
    return word_of(dcmread(row.path), vocabulary()) if row.path.exists() else None


def has_last_word(ledger: Ledger, study_uid: str, series_uid: str, content: str) -> bool:
    """Is a person's the series' report, on exactly this content? Then none of the machine's comes after it."""
    current = ledger.issued.current(study_uid, series_uid)
    if current is None or current.content != content:
        return False
    return _is_a_persons(ledger, current)


def _is_a_persons(ledger: Ledger, report: WrittenReport) -> bool:
    return any(remark.sop_instance_uid == report.sop_instance_uid for remark, _ in ledger.remarks(report.study_uid))


def predecessors_among(ledger: Ledger, earlier: Sequence[WrittenReport]) -> tuple[Predecessor, ...]:
    """Of a series' earlier reports, the oldest first: the last, and before it those that none names as a predecessor.

    There is more than one where a person corrected a report that late images had superseded meanwhile.
    """
    headers = {
        row.sop_instance_uid: dcmread(row.path, specific_tags=["SeriesInstanceUID", "PredecessorDocumentsSequence"])
        for row in earlier
        if row.path.exists()
    }
    known = (ledger.issued.known_as(uid) for header in headers.values() for uid in predecessors_of(header))
    named = {row.sop_instance_uid for row in known if row is not None}
    series = {uid: str(header.get("SeriesInstanceUID") or "") for uid, header in headers.items()}
    return tuple(
        Predecessor(row.sop_class_uid, row.sop_instance_uid, series.get(row.sop_instance_uid, ""))
        for row in reversed(earlier)
        if row is earlier[-1] or row.sop_instance_uid not in named
    )


# -- for training ----------------------------------------------------------------------------------------------------


def export(ledger: Ledger, folder: Path) -> int:
    """Copy every corrected series with its verified report, in the layout that `training` reads as `hospital`.

    Of several corrections the latest that has labels to read counts. Returns how many series were written. A series
    whose images have left the spool is passed over and logged.
    """
    seen: set[str] = set()
    written = 0
    for remark, _ in ledger.remarks():
        row = ledger.issued.report(remark.sop_instance_uid) if remark.kind == RemarkKind.CORRECTION else None
        if row is None or row.source_series_uid in seen or _word(row) is None:
            continue
        seen.add(row.source_series_uid)
        images = [i for i in ledger.instances(row.study_uid) if i.series_uid == row.source_series_uid]
        if not images or not all(image.path.exists() for image in images):
            log.warning("images have left the spool", study_uid=row.study_uid, series_uid=row.source_series_uid)
            continue
        target = folder / row.source_series_uid
        target.mkdir(parents=True, exist_ok=True)
        for path in (row.path, *(image.path for image in images if not image.conflict)):
            shutil.copyfile(path, target / path.name)
        written += 1
    return written
