"""What flows through the node: frozen types, and the table of a study's life."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydicom.uid import BasicTextSRStorage, Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

#: SOP classes that a report may take, the best first.
REPORT_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage, BasicTextSRStorage)


class State(StrEnum):
    """Where a study stands."""

    #: Images are coming in.
    RECEIVING = "receiving"
    #: Complete; the bell has been or will be rung.
    QUEUED = "queued"
    #: A worker holds the lease.
    LABELLING = "labelling"
    #: Reports are written; deliveries are under way.
    REPORTED = "reported"
    #: Every report has been answered with success by every destination, or a person has said that it need not arrive.
    SENT = "sent"
    #: Complete, but no image could be labelled; the reasons are in the ledger.
    UNLABELLED = "unlabelled"
    #: A person is needed; the reason is in the ledger.
    QUARANTINED = "quarantined"
    #: A person has said that it will not be labelled; who, when and why is in the ledger.
    DISMISSED = "dismissed"
    #: Done, and its images have left the spool; its reports stay.
    PURGED = "purged"


#: From each state, where a study may go. A late image leads back to RECEIVING from everywhere, a lost report's file
#: from where a study is labelled to QUEUED, a correction or a delivery taken up again from SENT and PURGED to REPORTED.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.RECEIVING: frozenset({State.QUEUED}),
    State.QUEUED: frozenset({State.LABELLING, State.QUARANTINED, State.RECEIVING}),
    State.LABELLING: frozenset({State.QUEUED, State.REPORTED, State.UNLABELLED, State.QUARANTINED, State.RECEIVING}),
    State.REPORTED: frozenset({State.SENT, State.QUARANTINED, State.QUEUED, State.RECEIVING}),
    State.SENT: frozenset({State.PURGED, State.REPORTED, State.QUEUED, State.RECEIVING}),
    State.UNLABELLED: frozenset({State.PURGED, State.QUEUED, State.RECEIVING, State.DISMISSED}),
    State.QUARANTINED: frozenset({State.QUEUED, State.REPORTED, State.SENT, State.RECEIVING, State.DISMISSED}),
    State.DISMISSED: frozenset({State.PURGED, State.QUEUED, State.RECEIVING}),
    State.PURGED: frozenset({State.REPORTED, State.RECEIVING}),
}


class Absent(StrEnum):
    """Why an object's file is not in the spool."""

    #: It is.
    HERE = ""
    #: Removed by us when its study was done.
    PURGED = "purged"
    #: Somebody or something else took it.
    MISSING = "missing"


#: Why an image of a series without all its files is not labelled: the report would speak of half of it.
FILES_GONE = "other images of its series have left the spool"
#: Why the images of a series are not labelled which our code cannot digest, while other series have their reports.
OUR_FAULT = "failed in our code: please report it"
#: The same, when a person has said that it need not be labelled; who, when and why is the detail.
LEFT_SO = "failed in our code, and a person has left it so"
#: Why an object is kept and no more.
CAME_SECOND = "another object with this UID came first"
#: Reasons that may be over when the study is labelled the next time.
PASSING = (FILES_GONE, OUR_FAULT, LEFT_SO)


class Kind(StrEnum):
    """What the node sends."""

    #: The Structured Report.
    REPORT = "report"
    #: The picture beside it, a Secondary Capture.
    SHEET = "sheet"
    #: The note that rejects a report which has a successor.
    REJECTION = "rejection"
    #: Our answer to a peer that asked for storage commitment.
    COMMITMENT = "commitment"


class Delivery(StrEnum):
    """Where a report stands with one destination."""

    WAITING = "waiting"
    #: Stored there; its storage commitment is awaited, and when that does not come in time it is sent again.
    AWAITED = "commitment awaited"
    SENT = "sent"
    FAILED = "failed"
    #: A sheet or note that the destination does not take or is not to get, or what was lost when it had a successor;
    #: nothing is owed.
    LEFT_OUT = "left out"
    #: It failed, and a person has said that it need not arrive; who, when and why is its detail.
    DISMISSED = "dismissed"
    #: A person has said that another destination gets it instead; which, who and when is its detail.
    REDIRECTED = "redirected"


#: Deliveries that fall due again.
OPEN = (Delivery.WAITING, Delivery.AWAITED)
#: Deliveries that owe nothing.
DONE = frozenset({Delivery.SENT, Delivery.LEFT_OUT, Delivery.DISMISSED, Delivery.REDIRECTED})


def moment(at: float, to: str = "seconds") -> str:
    """As people read it, in the zone of this machine; `at` is in seconds since the epoch."""
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", to)


@dataclass(frozen=True)
class Dismissal:
    """A person's word that something is not to be done any more.

    Attributes:
        by: the person, as far as the machine knows.
    """

    by: str
    because: str

    def told(self, at: float) -> str:
        """In one sentence; `at` is in seconds since the epoch."""
        return f"dismissed by {self.by} at {moment(at)}: {self.because}"


@dataclass(frozen=True)
class Redirection:
    """A person's word that one destination is to get what is owed to another.

    Attributes:
        by: the person, as far as the machine knows.
    """

    by: str
    origin: str
    to: str

    def told(self, at: float) -> tuple[str, str]:
        """In words, for what was owed and for what is now; `at` is in seconds since the epoch."""
        so = f"by {self.by} at {moment(at)}"
        return f"redirected to {self.to} {so}", f"redirected from {self.origin} {so}"


@dataclass(frozen=True)
class Sender:
    """Who sent an object: the calling AE title, the host it came from, and the peer's name in the settings."""

    ae_title: str
    host: str
    peer: str


@dataclass(frozen=True)
class Instance:
    """One SOP Instance in the spool.

    Attributes:
        digest: BLAKE3 of the data set as received; SHA-256 where a former version received it.
        received_at: seconds since the epoch; the modification time of the file.
        patient_key: hash of Patient ID and its issuer; tells two patients apart without naming them.
        conflict: another object with this UID but other bytes came first; kept, not labelled.
        absent: why the file is no longer at its path.
        accession_key: hash of Accession Number, to find its study by; empty where it has none.
    """

    sop_instance_uid: str
    digest: str
    study_uid: str
    series_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    patient_key: str
    path: Path
    size: int
    received_at: float
    peer: str
    calling_ae: str
    conflict: bool = False
    absent: Absent = Absent.HERE
    accession_key: str = ""


@dataclass(frozen=True)
class StudyRow:
    """What the ledger knows of one study."""

    study_uid: str
    state: State
    reason: str
    peer: str
    instances: int
    first_at: float
    last_at: float
    attempts: int
    completed_by: str
    #: When somebody last prepared all that had come; seconds since the epoch.
    prepared_at: float = 0.0


#: Begins the sign of a worker that lives and can do nothing.
UNFIT = "cannot load the model:"


@dataclass(frozen=True)
class Pulse:
    """A process's last sign of life.

    Attributes:
        process: its name, as `label@host`.
        seen_at: seconds since the epoch, by the process's own clock.
    """

    process: str
    doing: str
    seen_at: float


@dataclass(frozen=True)
class Lease:
    """The right to work on a study until it ends; `fence` grows with every lease and with every late image."""

    study_uid: str
    fence: int
    attempt: int


@dataclass(frozen=True)
class NotLabelled:
    """An instance without labels, and why."""

    sop_instance_uid: str
    series_uid: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class WrittenReport:
    """A report, or the sheet or note beside one, that lies in the spool, ready to be sent."""

    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    source_series_uid: str
    content: str
    path: Path
    predecessor: str | None
    #: What the report says, for people who ask the node instead of PACS (JSON, `reports.summary`).
    summary: str = ""
    kind: Kind = Kind.REPORT


@dataclass(frozen=True)
class DueDelivery:
    """One report on its way to one destination, leased."""

    report_uid: str
    study_uid: str
    destination: str
    path: Path
    attempt: int
    fence: int
    kind: Kind = Kind.REPORT
    #: How often its destination has failed on this very object.
    stumbles: int = 0


class StepStatus(StrEnum):
    """Performed Procedure Step Status (0040,0252)."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


@dataclass(frozen=True)
class PerformedStep:
    """What a scanner says of one Modality Performed Procedure Step.

    Attributes:
        peer: name of the scanner in the settings.
        images: SOP Instance UIDs of the images that it has made.
    """

    sop_instance_uid: str
    study_uid: str
    peer: str
    status: StepStatus
    images: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Announced:
    """What a study's performed steps say: how many images they name, how many of these are here, and is all over?"""

    named: int
    here: int
    steps: int
    ended: bool


@dataclass(frozen=True)
class Counted:
    """How many images of a study a peer said it holds, without our own reports, and when (seconds since the epoch)."""

    peer: str
    images: int
    at: float


class RemarkKind(StrEnum):
    DISPUTE = "dispute"
    CORRECTION = "correction"


@dataclass(frozen=True)
class Remark:
    """A person's word on one of our reports.

    Attributes:
        sop_instance_uid: of the object that says so.
        report_uid: of our report.
        said_by: the person's name as the object gives it; may be empty.
        changes: how many images gained ("added") and lost ("removed") each label; JSON.
    """

    kind: RemarkKind
    sop_instance_uid: str
    report_uid: str
    study_uid: str
    said_by: str
    note: str
    changes: str = "{}"
