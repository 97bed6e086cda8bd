"""Modality Performed Procedure Step as SCP (PS3.4 Annex F): the scanner says which images it has made.

N-CREATE tells that a step has begun, N-SET what it has come to. Only what completeness needs is kept: the study, the
status, and the images. It is a hint that quiet time can do without, so it is committed, and not made to outlive power.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from pydicom.dataset import Dataset
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.association.admission import admit
from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.settings import Peer, Settings
from dicom_node.study import PerformedStep, StepStatus
from dicom_node.uids import is_uid

if TYPE_CHECKING:
    from pynetdicom import evt

log = structlog.get_logger("mpps")

#: Statuses of PS3.7 Annex C.
SUCCESS, INVALID_VALUE, PROCESSING_FAILURE, DUPLICATE = 0x0000, 0x0106, 0x0110, 0x0111
NO_SUCH_OBJECT, INVALID_OBJECT, MISSING_ATTRIBUTE, NOT_AUTHORISED = 0x0112, 0x0117, 0x0120, 0x0124
#: Error ID beside 0x0110 (PS3.4 F.7.2.2.2): the step has ended and may not be changed.
MAY_NOT_BE_UPDATED = 0xA710

Answer = tuple[int | Dataset, Dataset | None]


class StepRefused(NodeError):
    """The scanner's word about a step is answered with `status`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    def answer(self) -> Dataset:
        answer = Dataset()
        answer.Status, answer.ErrorComment = self.status, str(self)[:64]
        if self.status == PROCESSING_FAILURE:
            answer.ErrorID = MAY_NOT_BE_UPDATED
        return answer


def begun(uid: str, attributes: Dataset, peer: str) -> PerformedStep:
    """The step of an N-CREATE (PS3.4 Table F.7.2-1).

    Raises:
        StepRefused: it names no study, or has not just begun.
    """
    if not is_uid(uid):
        raise StepRefused(INVALID_OBJECT, "the step has no SOP Instance UID")
    scheduled = attributes.get("ScheduledStepAttributesSequence") or [Dataset()]
    study = str(scheduled[0].get("StudyInstanceUID") or "")
    if not is_uid(study):
        raise StepRefused(MISSING_ATTRIBUTE, "no Study Instance UID in the Scheduled Step Attributes Sequence")
    if _status_of(attributes, None) != StepStatus.IN_PROGRESS:
        raise StepRefused(INVALID_VALUE, "a step begins as IN PROGRESS")
    return PerformedStep(uid, study, peer, StepStatus.IN_PROGRESS, images_of(attributes))


def changed(step: PerformedStep, attributes: Dataset) -> PerformedStep:
    """What an N-SET makes of a step; the sequence of its series is replaced as a whole.

    Raises:
        StepRefused: of a status that there is not.
    """
    images = images_of(attributes) if "PerformedSeriesSequence" in attributes else step.images
    return PerformedStep(step.sop_instance_uid, step.study_uid, step.peer, _status_of(attributes, step.status), images)


def images_of(attributes: Dataset) -> frozenset[str]:
    """Images of the Performed Series Sequence; other objects of a series may never be sent to us."""
    return frozenset(
        uid
        for series in attributes.get("PerformedSeriesSequence") or []
        for item in series.get("ReferencedImageSequence") or []
        if is_uid(uid := str(item.get("ReferencedSOPInstanceUID") or ""))
    )


def _status_of(attributes: Dataset, current: StepStatus | None) -> StepStatus:
    told = str(attributes.get("PerformedProcedureStepStatus") or current or "")
    try:
        return StepStatus(told)
    except ValueError:
        raise StepRefused(INVALID_VALUE, f"Performed Procedure Step Status is {told[:16]!r}") from None


class PerformedSteps:
    """What the receiver does with N-CREATE and N-SET."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger

    def on_create(self, event: evt.Event) -> Answer:
        """A step begins."""
        return self._answer(event, self._create)

    def on_set(self, event: evt.Event) -> Answer:
        """A step goes on or ends."""
        return self._answer(event, self._set)

    def _answer(self, event: evt.Event, enter: Callable[[evt.Event, Peer], PerformedStep]) -> Answer:
        requestor = event.assoc.requestor
        peer = admit(str(requestor.ae_title), self.settings.ae_title, requestor.address, self.settings).peer
        if peer is None or "push" not in peer.may:
            log.warning("step refused", calling_ae=str(requestor.ae_title), remedy='add "push" to its may')
            return NOT_AUTHORISED, None
        try:
            step = enter(event, peer)
        except StepRefused as refused:
            log.warning("step refused", peer=peer.name, status=hex(refused.status), reason=str(refused))
            return refused.answer(), None
        except SQLAlchemyError as error:
            log.error("the ledger failed", reason=str(error.args[0]))
            return PROCESSING_FAILURE, None
        log.info("performed step", study_uid=step.study_uid, status=step.status.value, images=len(step.images))
        return SUCCESS, None

    def _create(self, event: evt.Event, peer: Peer) -> PerformedStep:
        step = begun(str(event.request.AffectedSOPInstanceUID or ""), event.attribute_list, peer.name)
        if not self.ledger.performed.create(step):
            raise StepRefused(DUPLICATE, "this step has begun already")
        return step

    def _set(self, event: evt.Event, _: Peer) -> PerformedStep:
        before = self.ledger.performed.step(str(event.request.RequestedSOPInstanceUID))
        if before is None:
            raise StepRefused(NO_SUCH_OBJECT, "no such step has begun here")
        step = changed(before, event.modification_list)
        if not self.ledger.performed.change(step):
            raise StepRefused(PROCESSING_FAILURE, "Performed Procedure Step Object may no longer be updated")
        return step
