"""A study's work: prepare while it grows; open -> label -> report -> settle.

It takes an id, claims a lease in the ledger and may run twice: the second run finds nothing to do, or is overtaken and
leaves no trace. What becomes of each series: `labelling`.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.corrections import listen
from dicom_node.errors import HandedBack, OutOfResources, Quarantine, Superseded
from dicom_node.identity import disagreements, identity_of, is_one_patient
from dicom_node.labelling import Labelling, by_path
from dicom_node.leases import renewed
from dicom_node.ledger import Ledger
from dicom_node.logs import where
from dicom_node.model import Model
from dicom_node.patience import pause
from dicom_node.planes import Planes
from dicom_node.reading import Reader, remembered
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.study import (
    OUR_FAULT,
    Absent,
    Instance,
    Lease,
    NotLabelled,
    State,
    WrittenReport,
)
from labeler.dicom import series_of
from labeler.errors import BundleError, LabelerError, is_the_systems
from labeler.sandbox import Bounds, shared_sandbox

if TYPE_CHECKING:
    from labeler.label import Labeler

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

    @property
    def _labelling(self) -> Labelling:
        return Labelling(self.settings, self.ledger, self.spool, self.labeler, self._reader)

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
        fresh = [series for series in _by_series(taken) if not self._labelling.known_of(series)]
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
        mark = self.planes.place_of(instances[0].study_uid, f"{self._labelling.report_uid(instances)}.scored")
        if mark.exists():
            return True

        def make_room(_: int) -> None:
            if self.pressed() or self._drained_at is not None:
                raise HandedBack

        score = remembered(self.labeler, self.planes, instances[0].study_uid, keep=True)
        try:
            for series in series_of(self._reader.read(by_path(instances))):
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
        if isinstance(error, (OutOfResources, SQLAlchemyError, BundleError)) or is_the_systems(error):
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
        taken = self._looked_for([instance for instance in instances if not instance.conflict])
        images, notes = listen(self.settings, self.ledger, taken)
        patients = self._patients(lease.study_uid, images)
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

    def _looked_for(self, instances: Sequence[Instance]) -> list[Instance]:
        """The same; files that others took since the receiver started are marked as missing.

        Raises:
            OutOfResources: it is the spool that is gone.
        """
        gone = {str(i.path) for i in instances if not i.absent and not i.path.exists()}
        if gone and not self.spool.incoming.is_dir():
            raise OutOfResources(f"{self.spool.images} is away")
        self.ledger.holdings.mark_missing(gone)
        return [replace(i, absent=Absent.MISSING) if str(i.path) in gone else i for i in instances]

    def _patients(self, study_uid: str, images: Iterable[Instance]) -> dict[str, Path]:
        """For each patient's key a file that names the patient: an image or, where all are gone, the report on some."""
        reports = {one.source_series_uid: one.path for one in reversed(self.ledger.issued.of_study(study_uid))}
        return {
            instance.patient_key: reports.get(instance.series_uid, instance.path) if instance.absent else instance.path
            for instance in sorted(images, key=lambda one: not one.absent)
        }

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
                made, left_out = self._labelling.of(series, may_go_on)
            except Exception as error:  # whose fault it is decides who pays
                last = lease.attempt >= self.settings.attempts or isinstance(error, Quarantine)
                if not last or not _is_ours(error):
                    raise
                failed, made, left_out = error, [], _left_aside(series, error)
            written += made
            notes += left_out
        if failed is not None and not written:
            raise failed
        return written, notes


def _is_ours(error: Exception) -> bool:
    """Is it our code that cannot digest these images, and will not the next time? What disk, memory, ledger, model or
    GPU do may be over then; PyTorch tells all of that by RuntimeError."""
    hindered = (HandedBack, Superseded, OutOfResources, SQLAlchemyError, LabelerError)
    return not is_the_systems(error) and not isinstance(error, (*hindered, MemoryError, RuntimeError, ImportError))


def _left_aside(instances: Sequence[Instance], error: Exception) -> list[NotLabelled]:
    """The images of a series that our code cannot digest, with the place where it failed."""
    first = instances[0]
    again = f"with a mended node `dicom-node retry {first.study_uid}` labels it"
    told = str(error) if isinstance(error, Quarantine) else f"{where(error)}; {again}"
    log.error(f"series not labelled: {OUR_FAULT}", study_uid=first.study_uid, series_uid=first.series_uid, reason=told)
    return [NotLabelled(i.sop_instance_uid, i.series_uid, OUR_FAULT, told) for i in instances]


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
