"""Our own certificates: their end is seen ahead, and a failed handshake says whose certificate is at fault."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.association.certificates import remedy_of
from dicom_node.association.tls import client_context, server_context, trouble_with
from dicom_node.association.transport import failure
from dicom_node.desk import check as looks
from dicom_node.desk.check import Row, looked_at, must_work
from dicom_node.desk.health import Finding, findings
from dicom_node.desk.metrics import figures
from dicom_node.desk.rejections import rejections
from dicom_node.ledger import Ledger
from dicom_node.settings import Peer, Settings, Tls
from tests.certificates import Authority
from tests.support import free_port

NOW = datetime.now(UTC)
FRESH, SOON, OVER = (NOW + timedelta(days=days) for days in (300, 12.5, -1))


@pytest.fixture
def hospital(tmp_path: Path) -> Authority:
    return Authority.founded(tmp_path / "hospital")


def at_the_desk(home: Path, tls: Tls, ledger: Ledger) -> tuple[Row, dict[str, Finding]]:
    """What `config check` and `health` say of these certificates."""
    settings = Settings(home=home, tls=tls, bind="127.0.0.1", port=free_port(), reserve_mib=1)
    row = next(row for row in looked_at(settings, False) if row.what == "tls ends")
    return row, {item.what: item for item in findings(settings, ledger)}


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_model", lambda _: "")


def test_the_end_of_our_certificate_is_told_ahead(hospital: Authority, tmp_path: Path, ledger: Ledger) -> None:
    row, seen = at_the_desk(tmp_path, hospital.issue("node", until=FRESH), ledger)
    assert (row.state, row.well, row.doubtful) == (f"holds until {FRESH.date()}", True, False)
    assert seen["TLS certificate"] == Finding("TLS certificate", f"holds until {FRESH.date()}")
    assert seen["TLS ca"].remedy == ""
    row, seen = at_the_desk(tmp_path, hospital.issue("node", until=SOON), ledger)
    assert (row.well, row.doubtful) == (True, True)
    assert f"holds until {SOON.date()}, 12 days more: renew it" in row.state
    assert seen["TLS certificate"].remedy == row.state


def test_a_certificate_that_is_over_is_told_and_keeps_no_node_from_starting(
    hospital: Authority, tmp_path: Path, ledger: Ledger
) -> None:
    expired = hospital.issue("node", until=OVER)
    row, seen = at_the_desk(tmp_path, expired, ledger)
    assert not row.well
    assert f"{expired.certificate} (" in row.state
    assert f"expired on {OVER.date()}" in row.state
    assert seen["TLS certificate"].state == f"expired on {OVER.date()}"
    assert seen["TLS certificate"].remedy == row.state
    must_work(Settings(home=tmp_path, tls=expired))


@pytest.mark.parametrize("written", [b"", b"overwritten\n"])
def test_files_that_cannot_be_used_are_ill_health(
    hospital: Authority, tmp_path: Path, ledger: Ledger, written: bytes
) -> None:
    ours = hospital.issue("node")
    ours.certificate.write_bytes(written)
    row, seen = at_the_desk(tmp_path, ours, ledger)
    assert not row.well
    assert str(ours.certificate) in seen["TLS certificate"].state
    assert "they count at once" in seen["TLS certificate"].remedy


def test_a_key_of_another_certificate_is_ill_health(hospital: Authority, tmp_path: Path, ledger: Ledger) -> None:
    swapped = hospital.issue("node").model_copy(update={"key": hospital.issue("other").key})
    assert "the key is not this certificate's" in at_the_desk(tmp_path, swapped, ledger)[1]["TLS certificate"].state


def test_monitors_learn_when_certificates_end(hospital: Authority, tmp_path: Path, ledger: Ledger) -> None:
    ours = hospital.issue("node", until=SOON)
    settings = Settings(home=tmp_path, tls=ours)
    told = {figure.name: figure.values for figure in figures(settings, ledger)}["certificate_expiry_timestamp_seconds"]
    assert told["certificate",] == pytest.approx(SOON.timestamp(), abs=1)
    assert told["ca",] > SOON.timestamp()
    ours.ca.write_text("")
    assert {figure.name: figure.values for figure in figures(settings, ledger)}[
        "certificate_expiry_timestamp_seconds"
    ] == {}


def failed(ours: Tls, theirs: ssl.SSLContext) -> str:
    """Why a handshake with us comes to nothing, as the receiver says it."""
    near, far = socket.socketpair()
    near.settimeout(5)
    far.settimeout(5)

    def knock() -> None:
        try:
            with theirs.wrap_socket(near, server_hostname="127.0.0.1") as side:
                side.recv(1)
        except OSError:
            near.close()

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        with pytest.raises(ssl.SSLError) as error, server_context(ours).wrap_socket(far, server_side=True) as side:
            side.recv(1)
        return failure(error.value)
    finally:
        far.close()
        thread.join()


def as_scanner(tls: Tls) -> ssl.SSLContext:
    return client_context(Settings(tls=tls))


def test_a_failed_handshake_says_whose_certificate_it_is(hospital: Authority, tmp_path: Path) -> None:
    ours, theirs = hospital.issue("node"), hospital.issue("ct1")
    elsewhere = Authority.founded(tmp_path / "elsewhere").issue("ct1")
    old = as_scanner(theirs)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES256-GCM-SHA384")
    anonymous = ssl.create_default_context(cafile=theirs.ca)
    expired = (hospital.issue("late", until=OVER), hospital.issue("ct2", until=OVER))
    strangers = theirs.model_copy(update={"ca": elsewhere.ca}), elsewhere.model_copy(update={"ca": theirs.ca})
    for node, scanner, whose, what in (
        (expired[0], as_scanner(theirs), "OUR certificate has expired", "renew [tls] certificate"),
        (ours, as_scanner(strangers[0]), "the CA of OUR certificate", "let it trust that CA"),
        (ours, as_scanner(expired[1]), "ITS certificate has expired", "renewed there"),
        (ours, as_scanner(strangers[1]), "ITS certificate is of no CA in [tls] ca", "add its CA there"),
        (ours, anonymous, "ITS certificate is missing", "of a CA in [tls] ca"),
        (ours, old, "no cipher in common", "certificates play no part"),
    ):
        reason = failed(node, scanner)
        assert whose in remedy_of(reason), reason
        assert what in remedy_of(reason), reason


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("TLS: UNSUPPORTED_PROTOCOL", "let it speak TLS 1.2 or 1.3"),
        ("TLS: TLSV1_ALERT_PROTOCOL_VERSION", "let it speak TLS 1.2 or 1.3"),
        ("TLS: SSLV3_ALERT_BAD_CERTIFICATE", "it refuses OUR certificate"),
        ("TLS: WRONG_VERSION_NUMBER", "it speaks no TLS"),
        ("TLS: SSLV3_ALERT_HANDSHAKE_FAILURE", "no cipher in common"),
        ("TLS: handshake failed", "it needs a certificate of a CA in [tls] ca"),
    ],
)
def test_the_remedy_stands_beside_the_rejection(ledger: Ledger, failure: str, told: str) -> None:
    ledger.refuse("", "", "10.0.0.1", failure)
    (row,) = rejections(ledger, Settings())
    assert told in row.remedy


def test_an_archive_that_finds_our_certificate_expired_is_not_told_to_trust_its_ca(hospital: Authority) -> None:
    theirs = server_context(hospital.issue("pacs"))
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            connection, _ = door.accept()
            with pytest.raises(ssl.SSLError):
                theirs.wrap_socket(connection, server_side=True)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=door.getsockname()[1], tls=True)
        told = trouble_with(as_scanner(hospital.issue("late", until=OVER)), peer, 5)
        thread.join()
    assert told is not None
    assert "OUR certificate has expired: renew [tls] certificate" in told
    assert "let it trust" not in told
