"""The receiver over real associations: who comes in, what is kept, what is refused and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage, Verification

from dicom_node.ledger import Ledger
from dicom_node.receive import Receiver, reconcile
from dicom_node.schema import refusal
from dicom_node.settings import Peer, Settings
from dicom_node.spool import Spool
from tests.factories import a_series, changed


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        bind="127.0.0.1",
        port=0,
        home=tmp_path,
        reserve_mib=1,
        network_timeout=5,
        peers=(
            Peer(name="ct1", ae_title="CT1", host="127.0.0.1"),
            Peer(name="far", ae_title="FAR", host="10.0.0.1"),
            Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, may=frozenset({"reports"})),
        ),
    )


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings.ledger_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def receiver(settings: Settings, ledger: Ledger) -> Iterator[Receiver]:
    made = Receiver(settings, Spool(settings.home, settings.reserve_mib << 20), ledger)
    made.start()
    yield made
    made.stop()


def associated(receiver: Receiver, calling: str = "CT1", called: str = "ANATOMY", *contexts: tuple) -> Association:
    entity = AE(calling)
    for abstract, syntaxes in contexts or (
        (CTImageStorage, [ExplicitVRLittleEndian]),
        (Verification, [ImplicitVRLittleEndian]),
    ):
        entity.add_requested_context(abstract, syntaxes)
    return entity.associate("127.0.0.1", receiver.port, ae_title=called)


def pushed(receiver: Receiver, images: list[Dataset], *contexts: tuple) -> list[int]:
    association = associated(receiver, "CT1", "ANATOMY", *contexts)
    assert association.is_established
    try:
        return [association.send_c_store(image).Status for image in images]
    finally:
        association.release()


def test_images_are_kept_byte_for_byte_before_success(receiver: Receiver, ledger: Ledger) -> None:
    images = a_series("torso", 3, name="kept")
    assert pushed(receiver, images) == [0, 0, 0]
    kept = ledger.instances(images[0].StudyInstanceUID)
    assert {i.sop_instance_uid for i in kept} == {i.SOPInstanceUID for i in images}
    for instance in kept:
        raw = instance.path.read_bytes()
        offset = 144 + int.from_bytes(raw[140:144], "little")
        assert hashlib.sha256(raw[offset:]).hexdigest() == instance.digest
        sent = next(i for i in images if i.SOPInstanceUID == instance.sop_instance_uid)
        assert dcmread(instance.path).PixelData == sent.PixelData


def test_echo(receiver: Receiver) -> None:
    association = associated(receiver)
    assert association.send_c_echo().Status == 0
    association.release()


@pytest.mark.parametrize(("calling", "called"), [("CT9", "ANATOMY"), ("CT1", "OTHER"), ("FAR", "ANATOMY")])
def test_the_unknown_are_rejected_and_written_down(
    receiver: Receiver, ledger: Ledger, calling: str, called: str
) -> None:
    association = associated(receiver, calling, called)
    assert association.is_rejected
    assert ledger.counts(refusal, refusal.c.calling_ae, refusal.c.called_ae) == [(calling, called, 1)]


def test_a_peer_that_may_not_push_is_told_so(receiver: Receiver, ledger: Ledger) -> None:
    association = associated(receiver, "PACS")
    assert association.is_established
    assert association.send_c_store(a_series("leg", 1)[0]).Status == 0x0124
    association.release()
    assert ledger.studies() == []


def test_any_object_class_is_taken_private_ones_too(receiver: Receiver, ledger: Ledger) -> None:
    private = "1.3.12.2.1107.5.9.1"
    image = a_series("leg", 1, name="private")[0]
    image.SOPClassUID = private
    assert pushed(receiver, [image], (private, [ExplicitVRLittleEndian])) == [0]
    assert ledger.instances(image.StudyInstanceUID)[0].sop_class_uid == private


def test_a_syntax_that_we_can_decode_is_chosen_among_several(receiver: Receiver) -> None:
    exotic = "1.2.840.10008.1.2.4.95"
    association = associated(receiver, "CT1", "ANATOMY", (CTImageStorage, [exotic, JPEG2000Lossless]))
    assert association.accepted_contexts[0].transfer_syntax == [JPEG2000Lossless]
    association.release()
    association = associated(receiver, "CT1", "ANATOMY", (CTImageStorage, [exotic]))
    assert association.accepted_contexts[0].transfer_syntax == [exotic]
    association.release()


def test_the_same_image_twice_is_kept_once(receiver: Receiver, ledger: Ledger) -> None:
    images = a_series("leg", 1, name="twice")
    assert pushed(receiver, images + images) == [0, 0]
    assert len(ledger.instances(images[0].StudyInstanceUID)) == 1


def test_other_bytes_under_the_same_uid_are_kept_and_flagged(receiver: Receiver, ledger: Ledger) -> None:
    images = a_series("leg", 1, name="conflict")
    assert pushed(receiver, images) == [0]
    assert pushed(receiver, changed(images, lambda image: setattr(image, "PatientComments", "changed"))) == [0]
    assert [i.conflict for i in ledger.instances(images[0].StudyInstanceUID)] == [False, True]


def test_an_object_that_names_no_study_is_refused_with_the_reason(receiver: Receiver, ledger: Ledger) -> None:
    images = changed(a_series("leg", 1, name="nostudy"), lambda image: delattr(image, "StudyInstanceUID"))
    assert pushed(receiver, images) == [0xC000]
    ((reason, _),) = ledger.counts(refusal, refusal.c.reason)
    assert reason == "StudyInstanceUID is absent"


def test_below_the_reserve_the_answer_is_out_of_resources_and_nothing_stays(settings: Settings, ledger: Ledger) -> None:
    receiver = Receiver(settings, Spool(settings.home, reserve_bytes=1 << 60), ledger)
    receiver.start()
    try:
        images = a_series("leg", 2, name="full")
        assert pushed(receiver, images) == [0xA700, 0xA700]
        assert list(receiver.spool.files()) == []
        assert ledger.studies() == []
    finally:
        receiver.stop()


def test_a_ledger_that_fails_means_no_success(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def fail(_: object) -> bool:
        raise OperationalError("insert", {}, Exception("database is away"))

    monkeypatch.setattr(receiver.ledger, "add_instance", fail)
    assert pushed(receiver, a_series("leg", 1, name="away")) == [0xA700]


def test_what_a_kill_left_between_disk_and_ledger_is_found_at_the_next_start(
    receiver: Receiver, settings: Settings, ledger: Ledger
) -> None:
    images = a_series("torso", 4, name="killed")
    pushed(receiver, images)
    before = {i.sop_instance_uid: i for i in ledger.instances(images[0].StudyInstanceUID)}
    receiver.stop()
    (receiver.spool.incoming / "half.part").write_bytes(b"x")
    (settings.home / "ledger.sqlite").rename(settings.home / "lost.sqlite")
    fresh = Ledger(settings.ledger_url)
    assert reconcile(settings, receiver.spool, fresh) == 4
    after = {i.sop_instance_uid: i for i in fresh.instances(images[0].StudyInstanceUID)}
    assert after == before
    assert reconcile(settings, receiver.spool, fresh) == 0
    assert list(receiver.spool.incoming.iterdir()) == []
    fresh.engine.dispose()


def test_a_truncated_object_is_kept_for_the_labeler_to_judge(receiver: Receiver, ledger: Ledger) -> None:
    image = a_series("leg", 1, name="short")[0]
    image.PixelData = image.PixelData[:100]
    assert pushed(receiver, [image]) == [0]
    assert len(ledger.instances(image.StudyInstanceUID)) == 1


def test_the_file_is_what_a_viewer_opens(receiver: Receiver, ledger: Ledger) -> None:
    image = a_series("leg", 1, name="view")[0]
    pushed(receiver, [image])
    (kept,) = ledger.instances(image.StudyInstanceUID)
    read = dcmread(BytesIO(kept.path.read_bytes()))
    assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert read.file_meta.SourceApplicationEntityTitle == "CT1"
    assert read == image
