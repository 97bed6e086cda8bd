"""What a refusal comes down to in the figures: asked with the very words of those who refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.association.admission import admit, crowded
from dicom_node.desk.metrics import OTHER, kind_of
from dicom_node.errors import OutOfResources
from dicom_node.settings import Peer, Settings, Tls
from dicom_node.spool import Spool

PEER = Peer(name="ct1", ae_title="CT1", host="10.0.0.1", tls=True)
SETTINGS = Settings(tls=Tls(certificate=Path("c"), key=Path("k"), ca=Path("ca")), peers=(PEER,))


@pytest.mark.parametrize(
    ("calling", "called", "host", "kind"),
    [
        ("CT1", "NODE", "10.0.0.1", "called AE"),
        ("CT2", "ANATOMY", "10.0.0.1", "calling AE unknown"),
        ("CT1", "ANATOMY", "10.0.0.2", "calling AE at another host"),
        ("CT1", "ANATOMY", "10.0.0.1", "without TLS"),
        ("came without TLS", "ANATOMY", "10.0.0.1", "calling AE unknown"),
        ("CT1", "x is unknown", "10.0.0.1", "called AE"),
        ("TLS: \n", "ANATOMY", "10.0.0.1", "calling AE unknown"),
    ],
)
def test_a_callers_own_words_are_taken_for_nothing_else(calling: str, called: str, host: str, kind: str) -> None:
    assert kind_of(admit(calling, called, host, SETTINGS, secure=False).reason) == kind


def test_limits_are_told_apart_from_who_meets_them() -> None:
    hosts = ["10.0.0.1"] * 32
    assert kind_of(crowded(PEER, "10.0.0.1", hosts, SETTINGS).reason) == "limit of associations"
    assert kind_of(crowded(PEER, "10.0.0.1", ["10.0.0.2"] * 64, SETTINGS).reason) == "limit of associations"


def test_a_full_disk_is_no_room(tmp_path: Path) -> None:
    with pytest.raises(OutOfResources) as refused:
        Spool(tmp_path, 1 << 60).make_room(1)
    assert kind_of(str(refused.value)) == "no room"


def test_all_else_is_one_thing() -> None:
    assert kind_of("TLS: CERTIFICATE_VERIFY_FAILED") == "TLS"
    assert {kind_of("a command set without (0000,0100)"), kind_of("Patient ID is 'called Doe'"), kind_of("")} == {OTHER}
