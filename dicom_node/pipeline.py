"""A study's work: open -> label -> report -> settle; and a report's: deliver.

Both take an id, claim a lease in the ledger and may run twice: the second run finds nothing to do, or is overtaken and
leaves no trace. Alone in importing the labeler (with `report`, for the types of its answer).
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from logging import ERROR, INFO
from typing import TYPE_CHECKING, Any

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import report as reports
from dicom_node.commitment import ask, tell
from dicom_node.corrections import listen
from dicom_node.errors import NotTaken, OutOfResources, Quarantine, Retry, Superseded
from dicom_node.gate import evidence_of, inspected, passed, passed_sheet
from dicom_node.identity import disagreements, identity_of
from dicom_node.ledger import Ledger
from dicom_node.logs import where
from dicom_node.rendition import rendition
from dicom_node.send import Stored, patient_id_of, store
from dicom_node.settings import Peer, Settings
from dicom_node.sheet import best_planes, sheet_of, sheet_uid
from dicom_node.spool import Spool
from dicom_node.study import (
    FILES_GONE,
    REPORT_CLASSES,
    Delivery,
    DueDelivery,
    Instance,
    Kind,
    Lease,
    NotLabelled,
    State,
    WrittenReport,
)
from dicom_node.uids import content_of, derived, report_uid
from labeler.errors import LabelerError
from labeler.vocabulary import vocabulary

if TYPE_CHECKING:
    from labeler.label import Labeler
    from labeler.result import SeriesLabels
    from labeler.slices import FloatImage, Skipped

log = structlog.get_logger("pipeline")

#: Seconds that an archive has for its first answer about storage commitment; doubles with every attempt.
_COMMITMENT_PATIENCE = 600.0


@dataclass
class Pipeline:
    """The parts that work on a study; `load_labeler` is called once, when the first study needs it."""

    settings: Settings
    ledger: Ledger
    spool: Spool
    load_labeler: Callable[[], Labeler]
    clock: Callable[[], float] = time.time
    _labeler: Labeler | None = field(default=None, init=False)

    @property
    def labeler(self) -> Labeler:
        if self._labeler is None:
            self._labeler = self.load_labeler()
        return self._labeler

    # -- labelling -------------------------------------------------------------------------------------------------

    def label_study(self, study_uid: str) -> State | None:
        """Label a queued study and write its reports; None when there was nothing to do."""
        lease = self.ledger.claim(study_uid, self.settings.lease_seconds)
        if lease is None:
            return None
        started = self.clock()
        try:
            with self._kept(lease):
                state = self._work(lease)
        except Superseded as overtaken:
            log.info("overtaken", study_uid=study_uid, reason=str(overtaken))
            return None
        except Quarantine as reason:
            self.ledger.quarantine(lease, str(reason))
            log.error("quarantined", study_uid=study_uid, reason=str(reason))
            return State.QUARANTINED
        except Exception as error:  # the edge: whatever a study makes fail is the study's, not the worker's
            return self._failed(lease, error)
        log.info("labelled", study_uid=study_uid, state=state, seconds=round(self.clock() - started, 2))
        return state

    def _failed(self, lease: Lease, error: Exception) -> State:
        if isinstance(error, (OutOfResources, SQLAlchemyError)):
            return self._hindered(lease, error)
        told = str(error) if isinstance(error, LabelerError) else where(error)
        log.error("labelling failed", study_uid=lease.study_uid, attempt=lease.attempt, reason=told)
        if lease.attempt >= self.settings.attempts:
            self.ledger.quarantine(lease, f"failed {lease.attempt} times; last: {told}")
            return State.QUARANTINED
        self.ledger.postpone(lease, told, self.clock() + pause(lease.attempt, self.settings.longest_pause))
        return State.QUEUED

    def _hindered(self, lease: Lease, error: Exception) -> State:
        """Disk or ledger failed: the node's trouble, of which no study is laid aside, however long it lasts."""
        told = str(error) if isinstance(error, OutOfResources) else f"the ledger failed: {where(error)}"
        log.error("labelling hindered", study_uid=lease.study_uid, reason=told)
        self.ledger.postpone(lease, told, self.clock() + self.settings.lease_seconds, counted=False)
        return State.QUEUED

    def _work(self, lease: Lease) -> State:
        if lease.attempt > self.settings.attempts:
            raise Quarantine(
                f"{lease.attempt - 1} workers were lost on this study; look at its images, then "
                f"`dicom-node retry {lease.study_uid}`"
            )
        instances = self.ledger.instances(lease.study_uid)
        taken = [instance for instance in instances if not instance.conflict]
        images, notes = listen(self.settings, self.ledger, taken)
        if len({instance.patient_key for instance in images}) > 1:
            raise Quarantine("images of different patients carry this Study Instance UID; nothing is labelled")
        by_series = _by_series(images)
        ends = {series[0].series_uid: series[:: max(1, len(series) - 1)] for series in by_series}
        identities = {uid: [identity_of(instance.path) for instance in both] for uid, both in ends.items()}
        if found := list(disagreements(identities)):
            remedy = "mend the study at its source and push it under new UIDs; under these, what came first stays"
            raise Quarantine(f"the series are not one patient's, nothing is labelled: {'; '.join(found)}; {remedy}")
        written: list[WrittenReport] = []
        for series in by_series:
            made, left_out = self._series(series)
            notes += left_out
            written += made
        receivers = self.settings.receivers_of_reports
        sheets_to = [peer.name for peer in receivers if peer.sheet]
        return self.ledger.settle(lease, written, notes, [peer.name for peer in receivers], taken[-1].peer, sheets_to)

    def _series(self, instances: Sequence[Instance]) -> tuple[list[WrittenReport], list[NotLabelled]]:
        """Label one series; its report and sheet (the existing ones when nothing has changed) and what was left out."""
        series_uid = instances[0].series_uid
        content = content_of((instance.sop_instance_uid, instance.digest) for instance in instances)
        if known := self._known(report_uid(series_uid, content, self.labeler.info.fingerprint)):
            return known, []
        if any(instance.absent for instance in instances):
            return self._half(instances, content)
        answer, pictures, left_out = self._answer(instances)
        by_path = sorted(instances, key=lambda instance: instance.path)
        notes = [
            NotLabelled(by_path[item.source.index].sop_instance_uid, series_uid, item.reason.value, item.detail)
            for item in left_out
            if item.source.frame is None
        ]
        if not answer.slices:
            return [], notes
        context = self._context(instances, answer, content)
        verdict = reports.verdict_of(answer, context)
        if verdict.agreement == reports.Agreement.DIFFER:
            log.warning("header differs", series_uid=series_uid, peer=instances[0].peer, claimed=verdict.claimed)
        built = reports.build(answer, context)
        images = {instance.sop_instance_uid for instance in instances}
        data = inspected(reports.encode(built), context.header, images, vocabulary())
        report = WrittenReport(
            sop_instance_uid=str(built.SOPInstanceUID),
            sop_class_uid=str(built.SOPClassUID),
            study_uid=instances[0].study_uid,
            source_series_uid=series_uid,
            content=content,
            path=self.spool.store_report(built.SOPInstanceUID, data),
            predecessor=context.predecessor.sop_instance_uid if context.predecessor else None,
            summary=json.dumps(summary_of(answer, context)),
        )
        return [report, *self._sheet(report, built, answer, pictures, context)], notes

    def _known(self, uid: str) -> list[WrittenReport]:
        """The report with this UID and its sheet; nothing where a file of theirs is lost: both are made again."""
        report, sheet = self.ledger.report(uid), self.ledger.sheet(sheet_uid(uid))
        known = [part for part in (report, sheet) if part is not None]
        return known if report is not None and all(part.path.exists() for part in known) else []

    def _half(self, instances: Sequence[Instance], content: str) -> tuple[list[WrittenReport], list[NotLabelled]]:
        """A series of which files have left the spool: the report on exactly these images, if there is one, stays."""
        series_uid, study_uid = instances[0].series_uid, instances[0].study_uid
        for report in self.ledger.reports(study_uid):
            if (report.source_series_uid, report.content) == (series_uid, content):
                return [report], []
        gone = sum(bool(instance.absent) for instance in instances)
        told = f"{gone} of {len(instances)} images are gone; push the whole series again"
        log.error(f"not labelled: {FILES_GONE}", study_uid=study_uid, series_uid=series_uid, remedy=told)
        return [], [NotLabelled(i.sop_instance_uid, series_uid, FILES_GONE, told) for i in instances if not i.absent]

    def _sheet(
        self,
        report: WrittenReport,
        built: Dataset,
        answer: SeriesLabels,
        pictures: dict[str, FloatImage],
        context: reports.Context,
    ) -> Iterator[WrittenReport]:
        """The sheet beside a report, drawn where somebody is to get it."""
        if not any(peer.sheet for peer in self.settings.receivers_of_reports):
            return
        sheet = passed_sheet(sheet_of(built, answer, pictures, context), context.header)
        uid, sop_class = str(sheet.SOPInstanceUID), str(sheet.SOPClassUID)
        path = self.spool.store_report(uid, reports.encode(sheet))
        yield replace(
            report, sop_instance_uid=uid, sop_class_uid=sop_class, path=path, predecessor=None, kind=Kind.SHEET
        )

    def _answer(self, instances: Sequence[Instance]) -> tuple[SeriesLabels, dict[str, FloatImage], list[Skipped]]:
        """Labels of one series, its best planes, and every image left out; files beyond reading stand apart."""
        from labeler.dicom import read_dicom

        read = read_dicom([instance.path for instance in instances], self.labeler.spec.canvas)
        left_out = [item for series in read for item in series.skipped]
        series = max(read, key=lambda one: (len(one.stacks), one.series_instance_uid is not None))
        answer = self.labeler.label(series)
        return answer, best_planes(series, answer), left_out

    def _context(self, instances: Sequence[Instance], answer: SeriesLabels, content: str) -> reports.Context:
        first = next(i for i in instances if i.sop_instance_uid == answer.slices[0].source.sop_instance_uid)
        header = dcmread(first.path, stop_before_pixels=True)
        finished = datetime.fromtimestamp(max(instance.received_at for instance in instances), UTC).replace(tzinfo=None)
        context = reports.Context(header, content, finished)
        earlier = self.ledger.earlier(instances[0].series_uid, reports.uid_of(answer, context))
        if not earlier:
            return context
        predecessor = reports.Predecessor(earlier[-1].sop_class_uid, earlier[-1].sop_instance_uid)
        return reports.Context(header, content, finished, len(earlier) + 1, predecessor)

    @contextmanager
    def _kept(self, lease: Lease) -> Iterator[None]:
        """Renew the lease from a thread while the work runs; a lost lease is noticed when the work settles."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(self.settings.lease_seconds / 3):
                with suppress(SQLAlchemyError):  # the ledger is away for a moment; the lease may outlive that
                    if not self.ledger.renew(lease, self.settings.lease_seconds):
                        return

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    # -- delivering ------------------------------------------------------------------------------------------------

    def deliver(self, report_uid: str, destination: str) -> Delivery | None:
        """Send one report to one destination; None when there was nothing to do."""
        due = self.ledger.deliveries.claim(report_uid, destination, max(60.0, self.settings.lease_seconds))
        if due is None:
            return None
        try:
            stored = self._send(due)
        except Retry as reason:
            wait = pause(due.attempt, self.settings.longest_pause)
            self.ledger.deliveries.settle(due, Delivery.WAITING, str(reason), self.clock() + wait)
            log.warning(
                "delivery postponed",
                report_uid=report_uid,
                attempt=due.attempt,
                again_in=round(wait),
                reason=str(reason),
            )
            return Delivery.WAITING
        except Quarantine as reason:
            spared = due.kind == Kind.SHEET and isinstance(reason, NotTaken)
            state = Delivery.LEFT_OUT if spared else Delivery.FAILED
            self.ledger.deliveries.settle(due, state, str(reason))
            log.log(INFO if spared else ERROR, f"delivery {state}", report_uid=report_uid, reason=str(reason))
            return state
        log.info("delivered", report_uid=report_uid, destination=destination, answer=str(stored))
        if self.settings.peer(destination).commitment and due.kind != Kind.COMMITMENT:
            return self._ask_commitment(due, stored)
        self.ledger.deliveries.settle(due, Delivery.SENT, str(stored), sent_uid=stored.sop_instance_uid)
        return Delivery.SENT

    def _ask_commitment(self, due: DueDelivery, stored: Stored) -> Delivery:
        """Written down before it is asked, since the answer may come at once; unanswered, all is done again."""
        transaction = derived("transaction", stored.sop_instance_uid, due.destination, str(due.attempt))
        until = self.clock() + _COMMITMENT_PATIENCE * 2.0 ** min(due.attempt - 1, 7)
        self.ledger.deliveries.settle(
            due, Delivery.AWAITED, str(stored), until, stored.sop_instance_uid, transaction_uid=transaction
        )
        try:
            ask(self.settings.peer(due.destination), self.settings.ae_title, transaction, stored)
        except (Retry, Quarantine) as reason:
            state = Delivery.WAITING if isinstance(reason, Retry) else Delivery.FAILED
            told = f'{stored}, but storage commitment: {reason}; [[peers]] "{due.destination}" has commitment = true'
            again = self.clock() + pause(due.attempt, self.settings.longest_pause)
            self.ledger.deliveries.settle(due, state, told, again, stored.sop_instance_uid)
            log.warning("commitment not asked", report_uid=due.report_uid, reason=told)
            return state
        return Delivery.AWAITED

    def _send(self, due: DueDelivery) -> Stored:
        peer = self.settings.peer(due.destination)
        if not due.path.exists():
            raise self._lost(due)
        if due.kind == Kind.COMMITMENT:
            return tell(peer, self.settings.ae_title, dcmread(due.path))
        if peer.check_patient:
            self._check_patient(due, peer)
        if due.kind == Kind.SHEET and not peer.sheet:
            raise NotTaken(f"{peer.name} is to get no sheets (sheet = false)")
        return store(due.path, peer, self.settings.ae_title, _sendable)

    def _lost(self, due: DueDelivery) -> Retry | Quarantine:
        """What follows when the file is gone: a report is made again where all its images are here."""
        lost = self.ledger.holdings.lost_reports([str(due.path)])
        if any(one.repeatable for one in lost) and self.ledger.holdings.make_again(due.study_uid):
            return Retry(f"{due.path} was lost; the study is labelled again")
        return Quarantine(f"{due.path} was lost and cannot be made again; push study {due.study_uid} again")

    def _check_patient(self, due: DueDelivery, peer: Peer) -> None:
        """Hold what the peer would file under somebody else since a merge or a correction there."""
        try:
            there = patient_id_of(peer, self.settings.ae_title, due.study_uid)
        except NotTaken as reason:
            raise Quarantine(f'{reason}; [[peers]] "{peer.name}" has check_patient = true, which needs it') from reason
        here = str(dcmread(due.path, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or "")
        if there is not None and there != here.strip():
            raise Quarantine(
                f"{peer.name} files this study under another Patient ID than its images had here; held. Undo it there "
                f"and `dicom-node retry {due.study_uid}`, or set check_patient = false to send it as it is"
            )


def _sendable(report: Dataset, sop_class: UID) -> Dataset:
    """The report in a class that the destination takes, through the gate again: files rot, and renditions are new."""
    if sop_class not in REPORT_CLASSES:
        return passed_sheet(report, report)
    return passed(rendition(report, sop_class), report, evidence_of(report), vocabulary())


def pause(attempt: int, longest: float, chance: Callable[[], float] = random.random) -> float:
    """Seconds before the next attempt: doubling from one second, up to `longest`, the last half of it by chance."""
    full = min(longest, 2.0 ** min(attempt - 1, 30))
    return full * (0.5 + 0.5 * chance())


def _by_series(instances: Iterable[Instance]) -> list[list[Instance]]:
    groups: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.series_uid].append(instance)
    return [groups[uid] for uid in sorted(groups)]


def summary_of(answer: SeriesLabels, context: reports.Context) -> dict[str, Any]:
    """What `dicom-node status` and the demo show of a report."""
    verdict = reports.verdict_of(answer, context)
    findings = [
        {**asdict(finding), "images": [[_shown(answer, a), _shown(answer, b)] for a, b in finding.ranges]}
        for finding in answer.findings
    ]
    return {
        "modality": answer.modality,
        "plane": answer.plane,
        "images": len(answer.slices),
        "not_labelled": len(answer.skipped),
        "stations": list(answer.stations),
        "organs": list(answer.organs),
        "findings": findings,
        "others": {other.keyword: other.agreement.value for other in reports.others_of(answer, context)},
        "header": {"claimed": verdict.claimed, "implied": verdict.implied, "agreement": verdict.agreement.value},
        "bundle": f"{answer.bundle.name} {answer.bundle.version}",
    }


def _shown(answer: SeriesLabels, position: int) -> int:
    return answer.slices[position].source.shown_number


def open_pipeline(settings: Settings) -> Pipeline:
    """The pipeline of a worker process; the bundle is loaded with the first study."""

    def load() -> Labeler:
        from labeler.label import Labeler

        return Labeler.load(settings.bundle, settings.device)

    return Pipeline(settings, Ledger(settings.ledger_url), Spool(settings.home), load)
