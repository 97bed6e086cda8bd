"""A study's work: prepare while it grows; open -> label -> report -> settle.

It takes an id, claims a lease in the ledger and may run twice: the second run finds nothing to do, or is overtaken and
leaves no trace. Alone in importing the labeler (with `report`, for the types of its answer).
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
from pydicom.dataset import Dataset
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.corrections import (
    draw_lost_sheet,
    has_last_word,
    listen,
    predecessors_among,
    rejections_beside,
    words_on,
)
from dicom_node.errors import HandedBack, OutOfResources, Quarantine, Superseded
from dicom_node.identity import disagreements, identity_of, is_one_patient
from dicom_node.leases import renewed
from dicom_node.ledger import Ledger
from dicom_node.logs import where
from dicom_node.model import Model
from dicom_node.patience import pause
from dicom_node.peek import peek
from dicom_node.planes import Planes
from dicom_node.reading import Reader, remembered
from dicom_node.reports import report as reports
from dicom_node.reports.gate import inspected, passed_sheet
from dicom_node.reports.header import zone_of
from dicom_node.reports.sheet import best_planes, sheet_of
from dicom_node.reports.summary import summary_of
from dicom_node.reports.word import Word, upheld
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.study import (
    FILES_GONE,
    OUR_FAULT,
    Absent,
    Instance,
    Kind,
    Lease,
    NotLabelled,
    State,
    WrittenReport,
)
from dicom_node.uids import content_of, report_uid, sheet_uid
from labeler.dicom import Read, series_of
from labeler.errors import BundleError, LabelerError
from labeler.sandbox import Bounds, shared_sandbox
from labeler.vocabulary import vocabulary

if TYPE_CHECKING:
    from labeler.label import Labeler
    from labeler.result import SeriesLabels
    from labeler.slices import FloatImage, Skipped

log = structlog.get_logger("pipeline")

#: Of two patients in one study.
_REMEDY = "mend the study at its source and push it under new UIDs; under these, what came first stays"
#: Seconds that preparing one study may keep the others waiting.
_TURN_SECONDS = 5.0


@dataclass
class Pipeline:
    """The parts that work on a study; the model is loaded once, when the first study needs it or before."""

    settings: Settings
    ledger: Ledger
    spool: Spool
    load_labeler: Callable[[], Labeler]
    clock: Callable[[], float] = time.time
    #: Is somebody at the door? Then preparing makes room.
    pressed: Callable[[], bool] = lambda: False
    model: Model = field(init=False)
    _drained_at: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.model = Model(self.load_labeler)

    @property
    def labeler(self) -> Labeler:
        return self.model.get()

    @property
    def planes(self) -> Planes:
        wanted = self.settings
        return Planes(wanted.home, wanted.planes_mib << 20, wanted.reserve_mib << 20)

    @property
    def _reader(self) -> Reader:
        wanted, spec = self.settings, self.labeler.spec
        sandbox = shared_sandbox(spec.canvas, wanted.decoders, Bounds(wanted.decode_seconds, wanted.decode_mib))
        return Reader(self.planes, sandbox, spec.sha256)

    def drain(self) -> None:
        """The process is to end: what is not finished in time is handed back. Called from a signal handler."""
        self._drained_at = time.monotonic() + self.settings.drain_seconds

    def _renewed(self, lease: Lease) -> AbstractContextManager[threading.Event]:
        seconds = self.settings.lease_seconds
        return renewed(lambda: self.ledger.renew(lease, seconds), seconds, study_uid=lease.study_uid)

    def _may_go_on(self, lost: threading.Event) -> None:
        if lost.is_set():
            raise Superseded("the lease is lost, to another worker or a late image")
        if self._drained_at is not None and time.monotonic() > self._drained_at:
            raise HandedBack

    # -- preparing -------------------------------------------------------------------------------------------------

    def prepare(self, study_uid: str) -> bool:
        """Decode what has come of a growing study, and score its series that have long been silent.

        False when there is more to do, and others are to have their turn first.
        """
        began, row = self.clock(), self.ledger.study(study_uid)
        if row is None or row.state != State.RECEIVING or not self.planes.has_room():
            return True
        if not self.model.ready():
            return True
        taken = [i for i in self.ledger.instances(study_uid) if not i.conflict and i.modality in ("CT", "MR")]
        fresh = [series for series in _by_series(taken) if not self._known_of(series)]
        here = [instance for series in fresh for instance in series if not instance.absent]
        if not self._reader.prepare(here, _TURN_SECONDS):
            return False
        settled_before = began - self.settings.settled_after(row.peer)
        whole = [series for series in fresh if not any(image.absent for image in series)]
        settled = [series for series in whole if max(image.received_at for image in series) < settled_before]
        if not all(self._scored_ahead(series) for series in settled):
            return False
        self.ledger.prepared(study_uid, began)
        return True

    def _scored_ahead(self, instances: Sequence[Instance]) -> bool:
        """Leave the scores of a series in the cache; False when it was interrupted, and goes on there next time."""
        mark = self.planes.place_of(instances[0].study_uid, f"{self._report_uid(instances)}.scored")
        if mark.exists():
            return True

        def make_room(_: int) -> None:
            if self.pressed() or self._drained_at is not None:
                raise HandedBack

        score = remembered(self.labeler, self.planes, instances[0].study_uid, keep=True)
        try:
            for series in series_of(self._reader.read(_by_path(instances))):
                self.labeler.label(series, make_room, score=score)
        except HandedBack:
            return False
        except Exception:  # whatever it is, it is told when the study is labelled
            return True
        self.planes.put(mark, b"")
        return True

    # -- labelling -------------------------------------------------------------------------------------------------

    def label_study(self, study_uid: str) -> State | None:
        """Label a queued study and write its reports; None when there was nothing to do."""
        lease = self.ledger.claim(study_uid, self.settings.lease_seconds)
        if lease is None:
            return None
        started = self.clock()
        try:
            with self._renewed(lease) as lost:
                state = self._work(lease, partial(self._may_go_on, lost))
        except Superseded as overtaken:
            log.info("overtaken", study_uid=study_uid, reason=str(overtaken))
            return None
        except HandedBack:
            self.ledger.hand_back(lease)
            log.info("handed back; this process is to end", study_uid=study_uid)
            return State.QUEUED
        except Quarantine as reason:
            self.ledger.quarantine(lease, str(reason))
            self.planes.drop(study_uid)
            log.error("quarantined", study_uid=study_uid, reason=str(reason))
            return State.QUARANTINED
        except Exception as error:  # the edge: whatever a study makes fail is the study's, not the worker's
            return self._failed(lease, error)
        self.planes.drop(study_uid)
        log.info("labelled", study_uid=study_uid, state=state, seconds=round(self.clock() - started, 2))
        return state

    def _failed(self, lease: Lease, error: Exception) -> State:
        if isinstance(error, (OutOfResources, SQLAlchemyError, BundleError)):
            return self._hindered(lease, error)
        told = str(error) if isinstance(error, LabelerError) else where(error)
        told = f"{OUR_FAULT} ({told})" if _is_ours(error) else told
        log.error("labelling failed", study_uid=lease.study_uid, attempt=lease.attempt, reason=told)
        if lease.attempt >= self.settings.attempts:
            again = f"`dicom-node retry {lease.study_uid}` tries it again"
            self.ledger.quarantine(lease, f"failed {lease.attempt} times; last: {told}; {again}")
            self.planes.drop(lease.study_uid)
            return State.QUARANTINED
        self.ledger.postpone(lease, told, self.clock() + pause(lease.attempt, self.settings.longest_pause))
        return State.QUEUED

    def _hindered(self, lease: Lease, error: Exception) -> State:
        """Disk, ledger or model failed: the node's trouble, of which no study is laid aside, however long it lasts."""
        told = f"the ledger failed: {where(error)}" if isinstance(error, SQLAlchemyError) else str(error)
        log.error("labelling hindered", study_uid=lease.study_uid, reason=told)
        self.ledger.postpone(lease, told, self.clock() + self.settings.lease_seconds, counted=False)
        return State.QUEUED

    def _work(self, lease: Lease, may_go_on: Callable[[], None]) -> State:
        if lease.attempt > self.settings.attempts:
            raise Quarantine(
                f"{lease.attempt - 1} workers were lost on this study; look at its images, then "
                f"`dicom-node retry {lease.study_uid}`"
            )
        instances = self.ledger.instances(lease.study_uid)
        taken = [instance for instance in instances if not instance.conflict]
        images, notes = listen(self.settings, self.ledger, taken)
        patients = {instance.patient_key: instance.path for instance in images}
        if len(patients) > 1 and not is_one_patient(patients.values()):
            raise Quarantine(
                f"images of different patients carry this Study Instance UID, nothing is labelled; {_REMEDY}"
            )
        by_series = _by_series(images)
        ends = {series[0].series_uid: series[:: max(1, len(series) - 1)] for series in by_series}
        identities = {uid: [identity_of(instance.path) for instance in both] for uid, both in ends.items()}
        if found := list(disagreements(identities)):
            raise Quarantine(f"the series are not one patient's, nothing is labelled: {'; '.join(found)}; {_REMEDY}")
        written, left_out = self._one_by_one(lease, by_series, may_go_on)
        notes += left_out
        names = [peer.name for peer in self.settings.receivers_of_reports]
        sheets_to, rejections_to = self.settings.receivers_of_sheets, self.settings.receivers_of_rejections
        return self.ledger.settle(lease, written, notes, names, instances[-1].peer, sheets_to, rejections_to)

    def _one_by_one(
        self, lease: Lease, by_series: Iterable[Sequence[Instance]], may_go_on: Callable[[], None]
    ) -> tuple[list[WrittenReport], list[NotLabelled]]:
        """Every series. One that our code cannot digest, on the last try, costs no other its report; where none has one
        it costs the study."""
        written: list[WrittenReport] = []
        notes: list[NotLabelled] = []
        failed: Exception | None = None
        for series in by_series:
            try:
                made, left_out = self._series(series, may_go_on)
            except Exception as error:
                last = lease.attempt >= self.settings.attempts or isinstance(error, Quarantine)
                if not last or not _is_ours(error):
                    raise
                failed, made, left_out = error, [], _left_aside(series, error)
            written += made
            notes += left_out
        if failed is not None and not written:
            raise failed
        return written, notes

    def _series(
        self, instances: Sequence[Instance], may_go_on: Callable[[], None]
    ) -> tuple[list[WrittenReport], list[NotLabelled]]:
        """Label one series; its report and sheet (the existing ones when nothing has changed) and what was left out."""
        draw_lost_sheet(self.settings, self.ledger, self.spool, instances[0].study_uid, instances[0].series_uid)
        if known := self._known_of(instances):
            return known, []
        study_uid, series_uid, content = instances[0].study_uid, instances[0].series_uid, _content(instances)
        instances = self._looked_for(instances)
        if any(instance.absent for instance in instances):
            return self._half(instances)
        people = self._people(instances)
        answer, pictures, left_out = self._answer(instances, people, may_go_on)
        by_path = _by_path(instances)
        notes = [
            NotLabelled(by_path[item.source.index].sop_instance_uid, series_uid, item.reason.value, item.detail)
            for item in left_out
            if item.source.frame is None
        ]
        if not answer.slices:
            return [], notes
        context = self._context(instances, answer, content, people)
        verdict = reports.comparison_of(answer, context).verdict
        if verdict.agreement == reports.Agreement.DIFFER:
            log.warning("header differs", series_uid=series_uid, peer=instances[0].peer, claimed=verdict.claimed)
        built = reports.build(answer, context)
        images = {instance.sop_instance_uid for instance in instances}
        data = inspected(reports.encode(built), context.header, images, vocabulary())
        report = WrittenReport(
            sop_instance_uid=str(built.SOPInstanceUID),
            sop_class_uid=str(built.SOPClassUID),
            study_uid=study_uid,
            source_series_uid=series_uid,
            content=content,
            path=self.spool.store_report(built.SOPInstanceUID, data),
            predecessor=context.predecessors[0].sop_instance_uid if context.predecessors else None,
            summary=json.dumps(summary_of(answer, context)),
        )
        rejections = rejections_beside(self.settings, self.ledger, self.spool, report, built)
        return [report, *self._sheet(report, built, answer, pictures, context), *rejections], notes

    def _looked_for(self, instances: Sequence[Instance]) -> Sequence[Instance]:
        """The same; files that others took since the receiver started are marked as missing.

        Raises:
            OutOfResources: it is the spool that is gone.
        """
        gone = [str(i.path) for i in instances if not i.absent and not i.path.exists()]
        if gone and not self.spool.incoming.is_dir():
            raise OutOfResources(f"{self.spool.images} is away")
        self.ledger.holdings.mark_missing(gone)
        return [replace(i, absent=Absent.MISSING) if str(i.path) in gone else i for i in instances]

    def _report_uid(self, instances: Sequence[Instance]) -> str:
        return self._uid_with(instances, self._people(instances))

    def _uid_with(self, instances: Sequence[Instance], people: Sequence[Word]) -> str:
        upheld = (word.report_uid for word in people)
        return report_uid(instances[0].series_uid, _content(instances), self.labeler.info.fingerprint, *upheld)

    def _people(self, instances: Sequence[Instance]) -> tuple[Word, ...]:
        """Whom the report on these images upholds: all who were heard; or, where the last word is on just these images,
        those whom the report before it upheld, which may have to be made again."""
        first = instances[0]
        people = words_on(self.ledger, first.study_uid, first.series_uid)
        if not people or not self._has_last_word(instances):
            return people
        earlier = (people[:count] for count in range(len(people), -1, -1))
        return next((some for some in earlier if self.ledger.issued.report(self._uid_with(instances, some))), people)

    def _has_last_word(self, instances: Sequence[Instance]) -> bool:
        first = instances[0]
        return has_last_word(self.ledger, first.study_uid, first.series_uid, _content(instances))

    def _known_of(self, instances: Sequence[Instance]) -> list[WrittenReport]:
        """The report on just these images and its sheet; nothing where a file is lost: both are made again."""
        uid = self._report_uid(instances)
        report, sheet = self.ledger.issued.report(uid), self.ledger.issued.sheet(sheet_uid(uid))
        if report is None and self._has_last_word(instances):
            return self._reported_on(instances)  # by another model, and since then by a person
        known = [part for part in (report, sheet) if part is not None]
        return known if report is not None and all(part.path.exists() for part in known) else []

    def _reported_on(self, instances: Sequence[Instance]) -> list[WrittenReport]:
        """The first report on exactly these images, by whatever model."""
        wanted = instances[0].series_uid, _content(instances)
        reports = self.ledger.issued.of_study(instances[0].study_uid)
        return [one for one in reports if (one.source_series_uid, one.content) == wanted][:1]

    def _half(self, instances: Sequence[Instance]) -> tuple[list[WrittenReport], list[NotLabelled]]:
        """A series of which files have left the spool: the report on exactly these images, if there is one, stays."""
        if reported := self._reported_on(instances):
            return reported, []
        series_uid, study_uid = instances[0].series_uid, instances[0].study_uid
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
        if not self.settings.receivers_of_sheets:
            return
        sheet = passed_sheet(sheet_of(built, answer, pictures, context), context.header)
        uid, sop_class = str(sheet.SOPInstanceUID), str(sheet.SOPClassUID)
        path = self.spool.store_report(uid, reports.encode(sheet))
        yield replace(
            report, sop_instance_uid=uid, sop_class_uid=sop_class, path=path, predecessor=None, kind=Kind.SHEET
        )

    def _answer(
        self, instances: Sequence[Instance], people: Sequence[Word], may_go_on: Callable[[], None]
    ) -> tuple[SeriesLabels, dict[str, FloatImage], list[Skipped]]:
        """Labels of one series, as people have verified them where they have; its best planes, and every image left
        out. Files beyond reading stand apart."""

        def checked() -> Iterator[Read]:
            for read in self._reader.read(_by_path(instances)):
                may_go_on()
                yield read

        read = series_of(checked())
        left_out = [item for series in read for item in series.skipped]
        series = max(read, key=lambda one: (len(one.stacks), one.series_instance_uid is not None))
        score = remembered(self.labeler, self.planes, instances[0].study_uid, keep=False)
        answer = self.labeler.label(series, lambda _: may_go_on(), score=score)
        if people and answer.slices:
            answer = upheld(answer, people, vocabulary())
        return answer, best_planes(series, answer), left_out

    def _context(
        self, instances: Sequence[Instance], answer: SeriesLabels, content: str, people: tuple[Word, ...]
    ) -> reports.Context:
        first = next(i for i in instances if i.sop_instance_uid == answer.slices[0].source.sop_instance_uid)
        header = peek(first.path)
        finished = datetime.fromtimestamp(max(instance.received_at for instance in instances), zone_of(header) or UTC)
        context = reports.Context(header, content, finished, upheld=people)
        uid = reports.uid_of(answer, context)
        earlier = self.ledger.issued.earlier(first.study_uid, first.series_uid, uid)
        return replace(context, revision=len(earlier) + 1, predecessors=predecessors_among(self.ledger, earlier))


def _is_ours(error: Exception) -> bool:
    """Is it our code that cannot digest these images, and will not the next time? What disk, memory, ledger, model or
    GPU do may be over then; PyTorch tells all of that by RuntimeError."""
    if isinstance(error, OSError):
        return error.errno is None  # pydicom's, of bytes that end too early; the system numbers its own
    hindered = (HandedBack, Superseded, OutOfResources, SQLAlchemyError, LabelerError)
    return not isinstance(error, (*hindered, MemoryError, RuntimeError, ImportError))


def _left_aside(instances: Sequence[Instance], error: Exception) -> list[NotLabelled]:
    """The images of a series that our code cannot digest, with the place where it failed."""
    first = instances[0]
    again = f"with a mended node `dicom-node retry {first.study_uid}` labels it"
    told = str(error) if isinstance(error, Quarantine) else f"{where(error)}; {again}"
    log.error(f"series not labelled: {OUR_FAULT}", study_uid=first.study_uid, series_uid=first.series_uid, reason=told)
    return [NotLabelled(i.sop_instance_uid, i.series_uid, OUR_FAULT, told) for i in instances]


def _by_path(instances: Iterable[Instance]) -> list[Instance]:
    return sorted(instances, key=lambda instance: instance.path)


def _content(instances: Iterable[Instance]) -> str:
    return content_of((instance.sop_instance_uid, instance.digest) for instance in instances)


def _by_series(instances: Iterable[Instance]) -> list[list[Instance]]:
    groups: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.series_uid].append(instance)
    return [groups[uid] for uid in sorted(groups)]


def open_pipeline(settings: Settings) -> Pipeline:
    """The pipeline of a worker process; the bundle is loaded with the first study."""

    def load() -> Labeler:
        from labeler.label import Labeler

        return Labeler.load(settings.bundle, settings.device)

    return Pipeline(settings, Ledger(settings.ledger_url), Spool(settings.home), load)
