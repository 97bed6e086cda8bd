"""A series that our code cannot digest costs no other its report; what the machine does is no series' fault."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy.exc import OperationalError

from dicom_node.demo.archive import Archive
from dicom_node.desk.health import Finding, findings
from dicom_node.desk.status import overview, story
from dicom_node.errors import OutOfResources, Quarantine
from dicom_node.ledger.orders import IN_PART
from dicom_node.reports import report
from dicom_node.study import OUR_FAULT, Delivery, Dismissal, State
from tests.factories import a_series, changed
from tests.parts import Bench, told


def two_series(name: str) -> list[Dataset]:
    """MR images of a head, and three more of another series of the same study."""
    images, others = a_series("head", 5, name=name), a_series("leg", 3, name=name)
    for image in others:
        for element in (images[0][keyword] for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyID")):
            image[element.tag] = element
    return images + others


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, anywhere: bool = False) -> None:
    """Reports on CT series cannot be made."""
    build = report.build

    def made(answer: Any, context: report.Context) -> Dataset:
        if anywhere or answer.modality == "CT":
            raise error
        return build(answer, context)

    monkeypatch.setattr(report, "build", made)


def tried(bench: Bench, uid: str) -> State | None:
    """Labelled as often as a study may fail."""
    state = None
    for _ in range(bench.settings.attempts):
        state = bench.label(uid)
        bench.clock.now += 3600
    return state


def reason(bench: Bench, uid: str) -> str:
    row = bench.ledger.study(uid)
    assert row is not None
    return row.reason


@pytest.mark.parametrize("sop_class", ["1.3.46.670589.5.0.1", "1.2.840.10008.5.1.1.30"], ids=["private", "retired"])
def test_images_of_a_class_that_nobody_knows_are_labelled(bench: Bench, sop_class: str) -> None:
    images = two_series("class")
    changed(images[5:], lambda image: setattr(image, "SOPClassUID", sop_class))
    uid = bench.take(images)
    assert bench.label(uid) == State.REPORTED
    assert bench.reasons() == {}
    assert len(bench.ledger.issued.of_study(uid)) == 2


@pytest.mark.parametrize("error", [KeyError("Doe^John"), OSError("No tag to read at file position 256")])
def test_one_series_that_our_code_cannot_digest_stands_aside(
    bench: Bench, archive: Archive, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    uid = bench.take(two_series("aside"))
    failing(monkeypatch, error)
    assert tried(bench, uid) == State.REPORTED
    assert bench.reasons() == {OUR_FAULT: 3}
    assert [dcmread(one.path).StudyInstanceUID for one in bench.ledger.issued.of_study(uid)] == [uid]
    said = " ".join(told(story(bench.ledger, uid)).split())
    assert OUR_FAULT in said
    assert f"{type(error).__name__} in made (test_set_aside.py:" in said
    assert "Doe" not in said
    assert OUR_FAULT in told(overview(bench.ledger))
    assert bench.deliver(uid) == [Delivery.SENT]
    monkeypatch.undo()
    assert bench.ledger.orders.retry_study(uid)
    assert bench.label(uid) == State.REPORTED
    assert bench.reasons() == {}
    assert len(bench.ledger.issued.of_study(uid)) == 2
    assert not bench.ledger.orders.retry_study(uid)


def test_a_report_that_breaks_its_rules_costs_one_series_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = bench.take(two_series("gate"))
    failing(monkeypatch, Quarantine("the report stays here, it breaks its rules"))
    assert bench.label(uid) == State.REPORTED
    assert bench.reasons() == {OUR_FAULT: 3}
    assert "it breaks its rules" in told(story(bench.ledger, uid))


def test_where_no_series_has_a_report_the_study_is_laid_aside(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = bench.take(two_series("all"))
    failing(monkeypatch, KeyError("x"), anywhere=True)
    assert tried(bench, uid) == State.QUARANTINED
    assert reason(bench, uid).startswith(f"failed 3 times; last: {OUR_FAULT} (KeyError in made (")
    assert f"`dicom-node retry {uid}`" in reason(bench, uid)
    assert bench.reasons() == {}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError(28, "No space left on device"), State.QUEUED),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), State.QUARANTINED),
        (MemoryError(), State.QUARANTINED),
        (OutOfResources("the spool is away"), State.QUEUED),
        (OperationalError("", {}, Exception()), State.QUEUED),
    ],
)
def test_what_the_machine_does_is_no_series_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, state: State
) -> None:
    uid = bench.take(two_series("machine"))
    failing(monkeypatch, error)
    assert tried(bench, uid) == state
    assert OUR_FAULT not in reason(bench, uid)
    assert bench.reasons() == {}
    assert bench.ledger.issued.of_study(uid) == []
    monkeypatch.undo()
    bench.ledger.orders.retry_study(uid)
    assert bench.label(uid) == State.REPORTED
    assert len(bench.ledger.issued.of_study(uid)) == 2


def in_part(bench: Bench) -> Finding:
    (one,) = (item for item in findings(bench.settings, bench.ledger, ahead=[]) if item.what == "labelled in part")
    return one


@pytest.fixture
def partly(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study of which one series could not be labelled, by a node that has been mended since."""
    assert in_part(bench) == Finding("labelled in part", "0 studies")
    with monkeypatch.context() as patched:
        failing(patched, KeyError("x"))
        uid = bench.take(two_series("in part"))
        assert tried(bench, uid) == State.REPORTED
    return uid


def test_studies_that_are_labelled_in_part_are_told_and_tried_again_all_at_once(bench: Bench, partly: str) -> None:
    told = in_part(bench)
    assert told.state == "1 study, a series of which failed in our code"
    assert f"`dicom-node status {partly}`" in told.remedy
    assert "`dicom-node retry --in-part`" in told.remedy
    assert bench.ledger.orders.retry_studies([State.QUARANTINED]) == 0
    assert bench.ledger.orders.retry_studies([IN_PART], "ValueError in") == 0
    assert bench.ledger.orders.retry_studies([IN_PART], "KeyError in made") == 1
    assert bench.label(partly) == State.REPORTED
    assert in_part(bench).remedy == ""
    assert bench.ledger.orders.retry_studies([IN_PART]) == 0


def test_a_person_may_leave_it_at_a_part_and_think_better_of_it(bench: Bench, partly: str) -> None:
    assert bench.ledger.orders.dismiss_study(partly, Dismissal("anna", "a phantom"))
    assert in_part(bench).remedy == ""
    assert bench.ledger.orders.retry_studies([IN_PART]) == 0
    said = " ".join(told(story(bench.ledger, partly)).split())
    assert "dismissed by anna at" in said
    assert "KeyError in made" in said
    assert not bench.ledger.orders.dismiss_study(partly, Dismissal("anna", "again"))
    assert bench.ledger.orders.retry_study(partly)
    assert bench.label(partly) == State.REPORTED
    assert bench.reasons() == {}
    assert len(bench.ledger.issued.of_study(partly)) == 2
