"""What a peer would take is learnt without sending it anything."""

from __future__ import annotations

import socket

import pytest
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, Verification

from dicom_node.association import call
from dicom_node.association.call import Caller
from dicom_node.desk.status import accepted
from dicom_node.errors import Quarantine, Retry
from dicom_node.send import WANTED, preflight
from dicom_node.settings import Peer, Settings
from tests.support import Orthanc, free_port


def a_peer(port: int, ae_title: str = "PACS") -> Peer:
    return Peer(name="pacs", ae_title=ae_title, host="127.0.0.1", port=port)


def test_orthanc_takes_every_class_and_gets_no_object(orthanc: Orthanc) -> None:
    before = orthanc.get("/statistics")["CountInstances"]
    found = preflight(a_peer(orthanc.dicom_port, orthanc.ae_title), Caller(Settings()))
    assert found.keys() == WANTED.keys()
    assert all(ExplicitVRLittleEndian in syntaxes for syntaxes in found.values())
    assert accepted(found, "pacs")[1]
    assert orthanc.get("/statistics")["CountInstances"] == before


@pytest.mark.parametrize("takes_pictures", [True, False])
def test_a_peer_without_reports_is_told_apart(takes_pictures: bool) -> None:
    entity = AE("PACS")
    entity.add_supported_context(CTImageStorage)
    if takes_pictures:
        entity.add_supported_context(Verification)
        entity.add_supported_context(SecondaryCaptureImageStorage, ImplicitVRLittleEndian)
    stored: list[object] = []
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, stored.append)])
    try:
        found = preflight(a_peer(port), Caller(Settings()))
    finally:
        server.shutdown()
    assert found[Comprehensive3DSRStorage] == ()
    assert found[SecondaryCaptureImageStorage] == ((ImplicitVRLittleEndian,) if takes_pictures else ())
    table, takes_reports = accepted(found, "pacs")
    assert not takes_reports
    assert "Comprehensive 3D SR" in str(table.caption)
    assert stored == []


def test_a_peer_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(Retry, match="cannot be reached"):
        preflight(a_peer(free_port()), Caller(Settings()))


def test_how_a_peer_was_not_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Retry, match="cannot be reached: connection refused; nothing listens there"):
        preflight(a_peer(free_port()), Caller(Settings()))

    def late(*_: object) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(call.socket, "create_connection", late)
    with pytest.raises(Retry, match="cannot be reached: timed out; check host and the firewall"):
        preflight(a_peer(free_port()), Caller(Settings()))


def test_a_name_that_nobody_knows_is_tried_again_and_said() -> None:
    peer = Peer(name="pacs", ae_title="PACS", host="no-such-host.invalid", port=104)
    with pytest.raises(Retry, match=r'cannot be looked up: .*check host in \[\[peers\]\] "pacs"'):
        preflight(peer, Caller(Settings()))


def test_a_peer_without_a_port_is_not_said_to_refuse() -> None:
    with pytest.raises(Quarantine, match=r"add port = "):
        preflight(Peer(name="ct1", ae_title="CT1", host="127.0.0.1"), Caller(Settings()))
