"""When is a study complete? A scanner's performed steps, an archive's count, a person's word, silence; late images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import IS
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import ModalityPerformedProcedureStep
from sqlalchemy import update

from dicom_node.counts import Counter
from dicom_node.desk.status import story
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import study
from dicom_node.receive import Receiver
from dicom_node.settings import Peer, Settings
from dicom_node.spool import Spool
from dicom_node.study import State, StepStatus
from dicom_node.tasks import Bell
from dicom_node.watch import sweep
from tests.factories import a_series
from tests.integration.conftest import SetClock
from tests.integration.test_ledger import an_instance
from tests.parts import told
from tests.support import Orthanc


class Silent(Bell):
    """A bell without a broker: the ledger keeps the work."""

    def waiting(self, queue: str) -> int:
        return 0

    def _ring(self, name: str, *arguments: str) -> bool:
        return False


class Node:
    """A receiver and a watcher whose time is the test's; images count as received when the test says."""

    def __init__(self, home: Path, database: str, clock: SetClock, *peers: Peer) -> None:
        scanner = Peer(name="ct1", ae_title="CT1", host="127.0.0.1")
        viewer = Peer(name="view", ae_title="VIEW", host="127.0.0.1", may=frozenset({"audit"}))
        self.settings = Settings(
            home=home, bind="127.0.0.1", port=0, reserve_mib=0, ledger=database, peers=(scanner, viewer, *peers)
        )
        self.clock, self.ledger = clock, Ledger(database, clock)
        self.receiver = Receiver(self.settings, Spool(home), self.ledger)
        self.bell = Silent(Celery())

    def sweep(self, after: float = 0.0) -> int:
        self.clock.now += after
        return sweep(self.settings, self.ledger, self.bell).completed

    def now(self) -> None:
        """The clock stands where the last image came."""
        self.clock.now = max(row.last_at for row in self.ledger.studies())

    def long_ago(self, seconds: float) -> None:
        """What has come until now came so much earlier: images have the time of their files."""
        with self.ledger.engine.begin() as connection:
            connection.execute(update(study).values(last_at=study.c.last_at - seconds))

    def completed_by(self, images: list[Dataset]) -> str:
        row = self.ledger.study(str(images[0].StudyInstanceUID))
        assert row is not None
        assert row.state == State.QUEUED
        return row.completed_by

    @contextmanager
    def scanner(self, calling: str = "CT1") -> Iterator[Association]:
        entity = AE(calling)
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        entity.add_requested_context(ModalityPerformedProcedureStep)
        association = entity.associate("127.0.0.1", self.receiver.port, ae_title="ANATOMY")
        assert association.is_established
        yield association
        association.release()

    def push(self, images: list[Dataset]) -> None:
        with self.scanner() as association:
            assert [association.send_c_store(image).Status for image in images] == [0] * len(images)


@pytest.fixture
def node(tmp_path: Path, database: str, clock: SetClock) -> Iterator[Node]:
    made = Node(tmp_path / "home", database, clock)
    made.receiver.start()
    yield made
    made.receiver.stop()
    made.ledger.engine.dispose()


def a_step(images: list[Dataset], status: str = "IN PROGRESS", **changes: Any) -> Dataset:
    """What a scanner says of a step that has made these images."""
    step, scheduled, series = Dataset(), Dataset(), Dataset()
    scheduled.StudyInstanceUID = images[0].StudyInstanceUID
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ReferencedImageSequence = [_reference(image) for image in images if status != "IN PROGRESS"]
    step.PerformedProcedureStepStatus = status
    step.PerformedSeriesSequence = [series]
    if status == "IN PROGRESS":
        step.ScheduledStepAttributesSequence = [scheduled]
    for keyword, value in changes.items():
        setattr(step, keyword, value)
    return step


def _reference(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item


def create(association: Association, step: Dataset, uid: str | None = "1.9") -> int:
    return int(association.send_n_create(step, ModalityPerformedProcedureStep, uid)[0].Status)


def change(association: Association, step: Dataset, uid: str = "1.9") -> Dataset:
    answer: Dataset = association.send_n_set(step, ModalityPerformedProcedureStep, uid)[0]
    return answer


# -- performed steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["COMPLETED", "DISCONTINUED"])
def test_a_study_is_complete_when_all_images_of_its_step_are_here(node: Node, end: str) -> None:
    images = a_series("torso", 4, name="mpps")
    with node.scanner() as association:
        assert create(association, a_step(images)) == 0x0000
        assert association.send_c_store(images[0]).Status == 0
        node.now()
        assert node.sweep() == 0
        assert change(association, a_step(images, end)).Status == 0x0000
        for image in images[1:-1]:
            association.send_c_store(image)
        assert node.sweep() == 0
        association.send_c_store(images[-1])
        assert node.sweep() == 1
    assert node.completed_by(images) == "all 4 images that its performed step names are here"


def test_images_that_a_step_names_and_that_never_come_are_told(node: Node) -> None:
    images = a_series("torso", 4, name="short")
    node.push(images[:3])
    with node.scanner() as association:
        create(association, a_step(images))
        change(association, a_step(images, "COMPLETED"))
    node.now()
    assert node.sweep(59) == 0
    assert node.sweep(2) == 1
    assert node.completed_by(images) == "no image for 60 s; 3 of 4 that its performed step names"
    assert "3 of 4" in told(story(node.ledger, str(images[0].StudyInstanceUID)))
    assert "COMPLETED" in told(story(node.ledger, str(images[0].StudyInstanceUID)))


def test_two_steps_of_one_study_are_both_waited_for(node: Node) -> None:
    images = a_series("torso", 4, name="steps")
    node.push(images)
    node.now()
    with node.scanner() as association:
        create(association, a_step(images), "1.9.1")
        create(association, a_step(images), "1.9.2")
        change(association, a_step(images[:2], "COMPLETED"), "1.9.1")
        assert node.sweep() == 0
        change(association, a_step(images[2:], "COMPLETED"), "1.9.2")
    assert node.sweep() == 1
    assert node.completed_by(images) == "all 4 images that its 2 performed steps name are here"


def test_what_a_step_may_not_do_is_answered_by_the_standard(node: Node) -> None:
    images = a_series("leg", 2, name="refused")
    with node.scanner() as association:
        assert create(association, a_step(images, "COMPLETED", ScheduledStepAttributesSequence=[])) == 0x0120
        assert create(association, a_step(images, PerformedProcedureStepStatus="PAUSED")) == 0x0106
        assert create(association, a_step(images)) == 0x0000
        assert create(association, a_step(images)) == 0x0111
        assert change(association, a_step(images, "PAUSED")).Status == 0x0106
        assert change(association, a_step(images, "COMPLETED"), "1.9.9").Status == 0x0112
        assert change(association, a_step(images)).Status == 0x0000
        assert change(association, a_step(images, "DISCONTINUED")).Status == 0x0000
        ended = change(association, a_step(images, "COMPLETED"))
        assert (ended.Status, ended.ErrorID) == (0x0110, 0xA710)
    with node.scanner("VIEW") as association:
        assert create(association, a_step(images), "1.9.2") == 0x0124
    (step,) = node.ledger.performed.steps(str(images[0].StudyInstanceUID))
    assert (step.status, step.peer, len(step.images)) == (StepStatus.DISCONTINUED, "ct1", 2)


# -- counts --------------------------------------------------------------------------------------------------------


def test_a_study_is_complete_when_the_archive_holds_no_more(
    tmp_path: Path, database: str, clock: SetClock, orthanc: Orthanc
) -> None:
    pacs = Peer(name="pacs", ae_title="ORTHANC", host="127.0.0.1", port=orthanc.dicom_port, counts=True)
    node = Node(tmp_path / "home", database, clock, pacs)
    node.receiver.start()
    orthanc.knows("node", "ANATOMY", node.receiver.port)
    counter = Counter(node.settings, node.ledger)
    images = a_series("torso", 4, name=f"counted {node.ledger.engine.dialect.name}")
    for number, image in enumerate(images):
        orthanc.takes(image, tmp_path / f"{number}.dcm")
    node.push(images[:3])
    node.long_ago(100)
    node.now()
    assert (counter.ask(), node.sweep()) == (0, 0)
    clock.now += 5
    assert (counter.ask(), node.sweep()) == (1, 0)
    assert (counter.ask(), node.sweep(5)) == (0, 0)
    assert counter.ask() == 1
    node.push(images[3:])
    node.now()
    assert node.sweep() == 0
    clock.now += 5
    assert (counter.ask(), node.sweep()) == (1, 1)
    assert node.completed_by(images) == "4 images, as many as pacs holds"
    node.receiver.stop()
    node.ledger.engine.dispose()


def test_an_archive_that_is_away_is_left_alone_for_a_while_and_silence_decides(
    tmp_path: Path, database: str, clock: SetClock
) -> None:
    pacs = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, counts=True)
    node, ticks = Node(tmp_path / "home", database, clock, pacs), [0.0]
    node.receiver.start()
    counter = Counter(node.settings, node.ledger, lambda: ticks[0])
    images = a_series("leg", 1, name="alone")
    node.push(images)
    node.now()
    clock.now += 10
    assert counter.ask() == 0
    assert counter._not_before == {"pacs": 60.0}
    assert node.sweep(60) == 1
    assert node.completed_by(images) == "no image for 60 s"
    node.receiver.stop()
    node.ledger.engine.dispose()


def test_an_answer_beyond_reading_is_an_archives_own_and_it_is_asked_again(
    tmp_path: Path, database: str, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, counts=True)
    node, ticks = Node(tmp_path / "home", database, clock, pacs), [0.0]
    counter = Counter(node.settings, node.ledger, lambda: ticks[0])
    node.ledger.add_instance(an_instance(1))
    clock.now += 10

    def nines(*_: object) -> int:
        return int(IS("9" * 400))

    monkeypatch.setattr("dicom_node.counts.objects_of", nines)
    assert counter.ask() == 0
    monkeypatch.setattr("dicom_node.counts.objects_of", lambda *_: 1)
    ticks[0] += 61
    assert counter.ask() == 1
    node.ledger.engine.dispose()


# -- silence, and what comes late or twice -------------------------------------------------------------------------


def test_a_study_over_several_associations_is_one_and_interleaved_studies_are_two(node: Node) -> None:
    one, other = a_series("torso", 4, name="one"), a_series("leg", 4, name="other")
    for first, second in zip(one, other, strict=True):
        node.push([first, second])
    node.now()
    assert {row.study_uid: row.instances for row in node.ledger.receiving()} == {
        one[0].StudyInstanceUID: 4,
        other[0].StudyInstanceUID: 4,
    }
    assert node.sweep(30) == 0
    assert node.sweep(31) == 2


def test_a_late_image_reopens_and_the_same_image_twice_does_not(node: Node) -> None:
    images = a_series("torso", 4, name="late")
    node.push(images[:3])
    node.now()
    assert node.sweep(61) == 1
    node.push(images[:3])
    assert node.completed_by(images) == "no image for 60 s"
    other = a_series("torso", 4, name="late")[0]
    other.PatientComments = "other bytes"
    node.push([other])
    assert node.completed_by(images) == "no image for 60 s"
    assert [i.conflict for i in node.ledger.instances(str(images[0].StudyInstanceUID))].count(True) == 1
    node.push(images[3:])
    (row,) = node.ledger.receiving()
    assert row.instances == 4


def test_a_persons_word_completes_what_has_come(node: Node, tmp_path: Path) -> None:
    config = tmp_path / "dicom-node.toml"
    config.write_text(f'home = "{node.settings.home}"\nledger = "{node.settings.ledger_url}"\n')
    images = a_series("torso", 3, name="word")
    uid = str(images[0].StudyInstanceUID)

    def command() -> tuple[int, str]:
        words = [sys.executable, "-m", "dicom_node", "--config", str(config), "complete", uid]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"})
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    code, said = command()
    assert code == 1
    assert "never received here" in said
    node.push(images)
    assert command() == (0, "3 images, queued")
    assert node.completed_by(images) == "a person's word"
    code, said = command()
    assert code == 1
    assert "is queued" in said


def test_a_clock_set_ahead_completes_nothing_before_its_time_and_one_set_back_waits_no_longer(node: Node) -> None:
    node.push(a_series("leg", 1, name="clock"))
    node.now()
    node.clock.now += 3600
    jumped = node.clock.now
    assert sweep(node.settings, node.ledger, node.bell, steady_since=jumped).completed == 0
    node.clock.now -= 7200
    assert node.sweep() == 0
    assert node.sweep(59) == 0
    assert node.sweep(2) == 1
