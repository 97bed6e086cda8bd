"""The receiver over real associations: who comes in, what is kept, what is refused and why."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from blake3 import blake3
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage, Verification
from sqlalchemy import select, update

from dicom_node.association.tls import client_context
from dicom_node.association.wire import p_data
from dicom_node.desk.rejections import rejections
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import instance, refusal
from dicom_node.receive import Receiver, reconcile
from dicom_node.settings import Peer, Settings, Tls
from dicom_node.spool import Spool
from dicom_node.study import Absent
from tests import hostile
from tests.certificates import Authority
from tests.factories import a_series, changed
from tests.support import eventually, free_port


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
    return [answer.Status for answer in answers(receiver, images, *contexts)]


def answers(receiver: Receiver, images: list[Dataset], *contexts: tuple) -> list[Dataset]:
    association = associated(receiver, "CT1", "ANATOMY", *contexts)
    assert association.is_established
    try:
        return [association.send_c_store(image) for image in images]
    finally:
        association.release()


def test_images_are_kept_byte_for_byte_before_success(receiver: Receiver, ledger: Ledger) -> None:
    images = a_series("torso", 3, name="kept")
    assert pushed(receiver, images) == [0, 0, 0]
    kept = ledger.instances(images[0].StudyInstanceUID)
    assert {i.sop_instance_uid for i in kept} == {i.SOPInstanceUID for i in images}
    for one in kept:
        raw = one.path.read_bytes()
        offset = 144 + int.from_bytes(raw[140:144], "little")
        assert blake3(raw[offset:]).hexdigest() == one.digest
        sent = next(i for i in images if i.SOPInstanceUID == one.sop_instance_uid)
        assert dcmread(one.path).PixelData == sent.PixelData


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


@pytest.mark.parametrize("away", [False, True], ids=["here", "purged"])
def test_what_a_former_version_received_is_known_by_its_sha_256(receiver: Receiver, ledger: Ledger, away: bool) -> None:
    images = a_series("leg", 1, name="former")
    assert pushed(receiver, images) == [0]
    (kept,) = ledger.instances(images[0].StudyInstanceUID)
    raw = kept.path.read_bytes()
    sha_256 = hashlib.sha256(raw[144 + int.from_bytes(raw[140:144], "little") :]).hexdigest()
    with ledger.engine.begin() as connection:
        connection.execute(update(instance).values(digest=sha_256, absent=Absent.PURGED if away else Absent.HERE))
    if away:
        kept.path.unlink()
    assert pushed(receiver, images) == [0]
    assert ledger.instances(images[0].StudyInstanceUID) == [replace(kept, digest=sha_256)]
    assert pushed(receiver, changed(images, lambda image: setattr(image, "PatientComments", "changed"))) == [0]
    assert [i.conflict for i in ledger.instances(images[0].StudyInstanceUID)] == [False, True]


def test_an_object_that_names_no_study_is_refused_with_the_reason(receiver: Receiver, ledger: Ledger) -> None:
    images = changed(a_series("leg", 1, name="nostudy"), lambda image: delattr(image, "StudyInstanceUID"))
    (answer,) = answers(receiver, images)
    assert (answer.Status, answer.ErrorComment) == (0xC000, "StudyInstanceUID is absent")
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


def test_a_ledger_that_is_away_means_no_success_and_no_hang_up(receiver: Receiver, settings: Settings) -> None:
    file, images = settings.home / "ledger.sqlite", a_series("leg", 3, name="away")
    receiver.ledger.engine.dispose()
    file.rename(settings.home / "away.sqlite")
    file.mkdir()
    assert pushed(receiver, images[:2]) == [0xA700, 0xA700]
    file.rmdir()
    (settings.home / "away.sqlite").rename(file)
    assert pushed(receiver, images) == [0, 0, 0]
    assert len(receiver.ledger.instances(images[0].StudyInstanceUID)) == 3


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


def test_an_image_that_a_kill_left_in_part_is_no_image_and_may_be_sent_again(
    receiver: Receiver, settings: Settings, ledger: Ledger
) -> None:
    first, second = images = a_series("leg", 2, name="torn")
    assert pushed(receiver, images) == [0, 0]
    (settings.home / "ledger.sqlite").rename(settings.home / "lost.sqlite")
    torn = receiver.spool.place(first.StudyInstanceUID, first.SOPInstanceUID)
    torn.write_bytes(torn.read_bytes()[:-2000])
    fresh = Ledger(settings.ledger_url)
    assert reconcile(settings, receiver.spool, fresh) == 1
    assert not torn.exists()
    (kept,) = fresh.instances(first.StudyInstanceUID)
    assert kept.sop_instance_uid == second.SOPInstanceUID
    fresh.engine.dispose()
    (settings.home / "lost.sqlite").rename(settings.home / "ledger.sqlite")
    assert pushed(receiver, [first]) == [0]
    assert torn.exists()


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


# -- the fast path and its oracle ------------------------------------------------------------------------------------


def everything(home: Path, fast: bool, images: list[Dataset], *contexts: tuple) -> tuple[list, dict, list, list]:
    """Answers, files, rows and refusals of one push."""
    settings = Settings(
        bind="127.0.0.1",
        port=0,
        home=home,
        reserve_mib=0,
        fast_path=fast,
        peers=(Peer(name="ct1", ae_title="CT1", host="127.0.0.1"),),
    )
    ledger = Ledger(settings.ledger_url)
    receiver = Receiver(settings, Spool(home), ledger)
    receiver.start()
    try:
        told = answers(receiver, images, *contexts)
    finally:
        receiver.stop()
    files = {path.relative_to(home): path.read_bytes() for path in receiver.spool.files()}
    uids = sorted({str(image.get("StudyInstanceUID", "1.2")) for image in images})
    rows = [replace(i, path=i.path.relative_to(home), received_at=0.0) for uid in uids for i in ledger.instances(uid)]
    refused = sorted(row.reason for row in ledger.rows(refusal.select()))
    ledger.engine.dispose()
    return [(answer.Status, answer.get("ErrorComment")) for answer in told], files, rows, refused


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_the_fast_path_does_what_pynetdicom_does(tmp_path: Path, syntax: str) -> None:
    def push() -> list[Dataset]:
        images = a_series("torso", 4, name="oracle")
        for image in images:
            image.file_meta.TransferSyntaxUID = syntax
        images += changed(a_series("torso", 1, name="oracle"), lambda i: setattr(i, "PatientComments", "odd"))
        images += changed(a_series("torso", 1, name="lost"), lambda i: delattr(i, "SeriesInstanceUID"))
        for image in images[4:]:
            image.file_meta.TransferSyntaxUID = syntax
        return images

    contexts = (CTImageStorage, [syntax])
    fast = everything(tmp_path / "fast", True, push(), contexts)
    plain = everything(tmp_path / "plain", False, push(), contexts)
    assert fast == plain
    assert fast[0] == [*[(0, None)] * 5, (0xC000, "SeriesInstanceUID is absent")]
    assert len(fast[1]) == len(fast[2]) == 5


def test_an_object_in_fragments_of_any_size_is_kept_whole(receiver: Receiver, ledger: Ledger) -> None:
    for number, size in enumerate((7, 100, 4096, 131066)):
        uid = f"1.2.5.{number}".encode()
        data_set = hostile.image(uid, pixels=30_000)
        with hostile.RawPeer(receiver.port) as peer:
            peer.associated().say(p_data(1, hostile.command(instance=uid), command=True))
            peer.say(hostile.in_fragments(data_set, size=size))
            assert peer.status() == 0
        kept = ledger.instance(uid.decode())
        assert kept is not None
        assert kept.path.read_bytes().endswith(data_set)


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hospital(tmp_path: Path) -> Authority:
    return Authority.founded(tmp_path / "ca")


@pytest.fixture
def secured(settings: Settings, hospital: Authority, ledger: Ledger) -> Iterator[Receiver]:
    peers = (*settings.peers, Peer(name="ct2", ae_title="CT2", host="127.0.0.1", tls=True))
    wanted = settings.model_copy(update={"peers": peers, "tls": hospital.issue("node"), "request_timeout": 1.5})
    made = Receiver(wanted, Spool(settings.home), ledger)
    made.start()
    yield made
    made.stop()


def over_tls(receiver: Receiver, certificates: Tls, calling: str = "CT2") -> Association:
    entity = AE(calling)
    entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    context = client_context(Settings(tls=certificates))
    return entity.associate("127.0.0.1", receiver.tls_port, ae_title="ANATOMY", tls_args=(context, "127.0.0.1"))


def test_images_come_over_tls(secured: Receiver, hospital: Authority, ledger: Ledger) -> None:
    images = a_series("torso", 3, name="tls")
    association = over_tls(secured, hospital.issue("ct2"))
    assert association.is_established
    assert [association.send_c_store(image).Status for image in images] == [0, 0, 0]
    association.release()
    assert len(ledger.instances(images[0].StudyInstanceUID)) == 3


def test_a_peer_with_tls_is_refused_in_plain_and_others_are_not(secured: Receiver, ledger: Ledger) -> None:
    assert associated(secured, "CT2").is_rejected
    ((reason,),) = ledger.rows(select(refusal.c.reason))
    assert reason == "'CT2' came without TLS"
    (told,) = rejections(ledger, secured.settings)
    assert f"set port {secured.settings.tls.port} and TLS" in told.remedy
    plain = associated(secured, "CT1")
    assert plain.is_established
    plain.release()


def test_a_certificate_of_another_hospital_does_not_come_in(
    secured: Receiver, tmp_path: Path, ledger: Ledger, hospital: Authority
) -> None:
    stranger = Authority.founded(tmp_path / "elsewhere").issue("ct2")
    assert not over_tls(secured, stranger.model_copy(update={"ca": hospital.folder / "ca.pem"})).is_established
    eventually(lambda: [r for (r,) in ledger.rows(select(refusal.c.reason)) if r.startswith("TLS: ")], 5)


def test_silence_in_the_handshake_stops_nobody(secured: Receiver, hospital: Authority, ledger: Ledger) -> None:
    silent = [hostile.RawPeer(secured.tls_port) for _ in range(5)]
    silent[0].say(b"\x16\x03\x01\x02\x00\x01")
    try:
        association = over_tls(secured, hospital.issue("ct2"))
        assert association.is_established
        association.release()
        assert all(peer.ended()[1] < 5 for peer in silent)
    finally:
        for peer in silent:
            peer.socket.close()


def test_a_renewed_certificate_is_shown_to_the_next_peer(secured: Receiver, tmp_path: Path) -> None:
    renewed = Authority.founded(tmp_path / "ca")
    renewed.issue("node")
    association = over_tls(secured, renewed.issue("ct2"))
    assert association.is_established
    association.release()


# -- many, and the end -----------------------------------------------------------------------------------------------


def test_several_receivers_share_a_port(settings: Settings, ledger: Ledger) -> None:
    shared = settings.model_copy(update={"receivers": 2, "port": free_port()})
    receivers = [Receiver(shared, Spool(settings.home), ledger) for _ in range(2)]
    for receiver in receivers:
        receiver.start()
    try:
        served = set()
        images = a_series("torso", 8, name="shared")
        for image in images:
            association = associated(receivers[0])
            served |= {n for n, r in enumerate(receivers) if r._guests()}
            assert association.send_c_store(image).Status == 0
            association.release()
    finally:
        for receiver in receivers:
            receiver.stop()
    assert len(ledger.instances(images[0].StudyInstanceUID)) == 8
    assert served <= {0, 1}


def test_a_receiver_that_ends_lets_the_object_that_is_coming_arrive(receiver: Receiver, ledger: Ledger) -> None:
    with hostile.RawPeer(receiver.port) as peer, hostile.RawPeer(receiver.port) as idle:
        idle.associated()
        peer.associated().say(p_data(1, hostile.command(), command=True))
        eventually(lambda: any(guest.dul.messages.busy for guest in receiver._guests()), 5)
        ending = threading.Thread(target=receiver.stop)
        ending.start()
        time.sleep(0.3)
        peer.say(hostile.in_fragments(hostile.image()))
        assert peer.status() == 0
        ending.join(10)
        assert idle.ended()[0] == [hostile.ABORTED]
    assert ledger.instance("1.2.3.4") is not None


def test_what_would_admit_a_stranger_is_shown(receiver: Receiver, ledger: Ledger, settings: Settings) -> None:
    associated(receiver, "[red]US1")
    associated(receiver, "[red]US1")
    (told,) = rejections(ledger, settings)
    assert (told.calling_ae, told.count) == ("[red]US1", 2)
    assert 'ae_title = "[red]US1"\nhost = "127.0.0.1"' in told.remedy
    admitted = settings.model_copy(update={"peers": (Peer(name="us1", ae_title="[red]US1", host="127.0.0.1"),)})
    assert next(rejections(ledger, admitted)).remedy == ""


def test_ever_new_names_fill_no_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.ledger.ledger._REFUSALS", 10)
    clock = iter(range(1, 1000))
    ledger.clock = lambda: float(next(clock))
    for number in range(30):
        ledger.refuse(f"A{number}", "B", "h", "unknown")
    assert {row.calling_ae for row in ledger.rows(refusal.select())} == {f"A{n}" for n in range(20, 30)}
