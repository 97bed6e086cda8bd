"""C-ECHO, C-STORE and C-FIND SCU: one object to one peer, what its answer means, and what the peer would take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import NoReturn

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification
from pynetdicom.status import STATUS_SUCCESS, STATUS_WARNING, code_to_category

from dicom_node.association.call import Caller, Contexts, at
from dicom_node.errors import NoObject, NotTaken, Quarantine, Retry, Stumbled
from dicom_node.settings import Peer
from dicom_node.study import REPORT_CLASSES

#: Success, and the warnings with which the object is stored (PS3.4 Table B.2-1).
STORED = frozenset({0x0000, 0xB000, 0xB006, 0xB007})
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)

#: Makes an object of that class of a report.
Render = Callable[[Dataset, UID], Dataset]

#: What a peer is asked for by `preflight`: the classes that a report may take, best first, and its pictures.
WANTED: dict[UID, tuple[UID, ...]] = {
    Verification: PLAIN,
    **dict.fromkeys(REPORT_CLASSES, (*PLAIN, DeflatedExplicitVRLittleEndian)),
    SecondaryCaptureImageStorage: (*PLAIN, RLELossless),
    KeyObjectSelectionDocumentStorage: PLAIN,
}
#: What is proposed for our own objects, so that a report, its sheet and all that waits share an association.
_OURS: Contexts = (
    *((sop_class, PLAIN) for sop_class in REPORT_CLASSES),
    (SecondaryCaptureImageStorage, (RLELossless,)),
    (SecondaryCaptureImageStorage, PLAIN),
    (KeyObjectSelectionDocumentStorage, PLAIN),
)


class Meaning(Enum):
    """What the status of a C-STORE response means for the object."""

    STORED = auto()
    #: The peer has no room or no time: the object waits.
    LATER = auto()
    #: The peer failed without saying whether the object is to blame.
    STUMBLED = auto()
    #: The peer takes no objects of this SOP class.
    NOT_TAKEN = auto()
    #: The same object would be refused again.
    NEVER = auto()


def meaning(status: int) -> Meaning:
    """PS3.4 Table B.2-1 for the Storage Service, PS3.7 Annex C for what any service may answer.

    Duplicate SOP Instance (0x0111) is a success here: our UIDs are derived from what the objects say, so what the peer
    has under this UID is this object, sent by an attempt whose answer never came.
    """
    if code_to_category(status) in (STATUS_SUCCESS, STATUS_WARNING) or status == 0x0111:
        return Meaning.STORED
    if 0xA700 <= status <= 0xA7FF or status in (0x0210, 0x0213):
        return Meaning.LATER
    return {0x0110: Meaning.STUMBLED, 0x0122: Meaning.NOT_TAKEN}.get(status, Meaning.NEVER)


@dataclass(frozen=True)
class Stored:
    """What a peer has stored: its answer, and the object as it was sent."""

    status: int
    sop_class_uid: UID
    sop_instance_uid: str

    def __str__(self) -> str:
        return f"0x{self.status:04X}, as {self.sop_class_uid.name}"


def must_be_object(path: Path) -> None:
    """Before a person's file is sent.

    Raises:
        NoObject: it cannot be.
    """
    try:
        header = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"])
    except InvalidDicomError as error:
        raise NoObject(f"{path}: not a DICOM file") from error
    except Exception as error:  # it may hold anything, and the parser raises whatever it meets
        raise NoObject(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})"
        ) from error
    missing = [name for name in ("SOPClassUID", "SOPInstanceUID") if not header.get(name)]
    if missing:
        raise NoObject(f"{path}: not a DICOM object, it has no {' and no '.join(missing)}")


def store(path: Path, peer: Peer, caller: Caller, render: Render | None = None) -> Stored:
    """Send one file by C-STORE; returns when the peer has stored it.

    Proposes the file's own SOP class and, for what can be rendered, all classes of our objects: where the peer does not
    take a report's first, it gets the report in the best class that it takes.

    Raises:
        Retry: the peer cannot be reached, is out of resources, or gave no answer.
        Stumbled: it failed on this object, and may do so again.
        Quarantine: the peer will not take this object, however often it is sent.
    """
    data_set = dcmread(path)
    own = UID(data_set.SOPClassUID)
    contexts = _OURS if render else [(own, syntaxes) for syntaxes in _syntaxes_of(data_set)]

    def work(association: Association) -> tuple[Dataset, Dataset] | None:
        accepted = association.accepted_contexts
        best = _best(own, {context.abstract_syntax for context in accepted}, peer)
        sent = render(data_set, best) if render else data_set
        if not any(_carries(context, sent) for context in accepted):
            _unpack(sent)
        try:
            answer = association.send_c_store(sent)
        except ValueError as error:
            raise Quarantine(f"{at(peer)} takes it in no form that it can be given: {error}") from error
        return (sent, answer) if "Status" in answer else None

    sent, answer = caller.call(peer, contexts, work)
    stored = Stored(int(answer.Status), UID(sent.SOPClassUID), str(sent.SOPInstanceUID))
    if meaning(stored.status) != Meaning.STORED:
        _refuse(peer, answer)
    return stored


def _best(own: UID, accepted: set[UID], peer: Peer) -> UID:
    wanted = REPORT_CLASSES if own in REPORT_CLASSES else (own,)
    best = next((sop_class for sop_class in (own, *wanted) if sop_class in accepted), None)
    if best is None:
        seen = f"`dicom-node preflight {peer.name}` tells what it takes"
        raise NotTaken(f"{at(peer)} takes no objects of the SOP class {own.name} ({own}); {seen}")
    return best


def _carries(context: PresentationContext, sent: Dataset) -> bool:
    syntax = sent.file_meta.TransferSyntaxUID
    return context.abstract_syntax == sent.SOPClassUID and context.transfer_syntax[0] == syntax


def _refuse(peer: Peer, answer: Dataset) -> NoReturn:
    told = f"{at(peer)} answered 0x{answer.Status:04X}"
    elements = answer.get("OffendingElement") or []
    tags = elements if isinstance(elements, list | MultiValue) else [elements]
    named = [keyword_for_tag(tag) or str(tag) for tag in tags]
    words = " ".join(filter(None, [str(answer.get("ErrorComment") or ""), f"({', '.join(named)})" if named else ""]))
    match meaning(int(answer.Status)):
        case Meaning.LATER:
            raise Retry(told, words)
        case Meaning.STUMBLED:
            raise Stumbled(told, words)
        case Meaning.NOT_TAKEN:
            raise NotTaken(told, words)
    raise Quarantine(told, words)


def _syntaxes_of(data_set: Dataset) -> list[list[UID]]:
    """Transfer syntaxes by presentation context: the file's own, and the plain ones where it can be made plain.

    A peer answers one transfer syntax a presentation context, and every peer knows Implicit VR Little Endian.
    """
    own = data_set.file_meta.TransferSyntaxUID
    if own == ExplicitVRLittleEndian:
        return [[own, ImplicitVRLittleEndian]]
    return [[own], list(PLAIN)] if own == RLELossless else [[own]]


def _unpack(data_set: Dataset) -> None:
    """Run-length encoded pixels -> plain ones, in the same instance: the same picture (PS3.5 A.4.2)."""
    if data_set.file_meta.TransferSyntaxUID == RLELossless:
        data_set.decompress(generate_instance_uid=False)


def echo(peer: Peer, caller: Caller) -> None:
    """C-ECHO; returns when the peer answers success.

    Raises:
        Retry: it does not; the message says where it stopped.
    """

    def work(association: Association) -> int | None:
        status = association.send_c_echo().get("Status")
        return None if status is None else int(status)

    status = caller.call(peer, [(Verification, PLAIN)], work)
    if status != 0x0000:
        raise Retry(f"{at(peer)}: C-ECHO answered 0x{status:04X}")


def preflight(peer: Peer, caller: Caller) -> dict[UID, tuple[UID, ...]]:
    """What the peer would take: for every SOP class of `WANTED` the transfer syntaxes that it accepts. Sends no object.

    A peer answers one transfer syntax a presentation context (PS3.8 9.3.3.2), so each pair is proposed by itself.

    Raises:
        Retry: the peer cannot be reached or rejects the association.
        Quarantine: the settings give it no port.
    """

    def work(association: Association) -> set[tuple[UID, UID]]:
        return {(context.abstract_syntax, context.transfer_syntax[0]) for context in association.accepted_contexts}

    pairs = [(sop_class, (syntax,)) for sop_class, syntaxes in WANTED.items() for syntax in syntaxes]
    try:
        accepted = caller.call(peer, pairs, work)
    except NotTaken:
        accepted = set()
    return {
        sop_class: tuple(syntax for syntax in syntaxes if (sop_class, syntax) in accepted)
        for sop_class, syntaxes in WANTED.items()
    }


def best_class(found: Mapping[UID, tuple[UID, ...]]) -> UID | None:
    """As what our reports would go to a peer, by what `preflight` found; None where it would take none."""
    return next((sop_class for sop_class in REPORT_CLASSES if set(PLAIN) & set(found.get(sop_class, ()))), None)


def patient_id_of(peer: Peer, caller: Caller, study_uid: str) -> str | None:
    """Under which Patient ID a peer files a study now; None where it has no such study. Raises as `_found` does."""
    return _found(peer, caller, study_uid, "PatientID")


def objects_of(peer: Peer, caller: Caller, study_uid: str) -> int:
    """How many objects of a study a peer holds, 0 where it does not say. Raises as `_found` does."""
    told = _found(peer, caller, study_uid, "NumberOfStudyRelatedInstances")
    return int(told) if told and told.isdecimal() else 0


def _found(peer: Peer, caller: Caller, study_uid: str, keyword: str) -> str | None:
    """One attribute of a study at a peer (C-FIND, PS3.4 C.6.2.1); None where it has no such study.

    Raises:
        Retry: the peer cannot be asked now.
        NotTaken: it answers no queries.
        Quarantine: the settings give it no port.
    """
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study_uid
    setattr(query, keyword, None)
    model = StudyRootQueryRetrieveInformationModelFind

    def work(association: Association) -> list[tuple[Dataset, Dataset | None]] | None:
        answers = list(association.send_c_find(query, model))
        return answers if answers and "Status" in answers[-1][0] else None

    found: str | None = None
    for status, match in caller.call(peer, [(model, PLAIN)], work):
        if status.Status not in (0x0000, 0xFF00, 0xFF01):
            raise Retry(f"{at(peer)}: C-FIND answered 0x{status.Status:04X}")
        if match is not None:
            found = str(match.get(keyword) or "").strip()
    return found
