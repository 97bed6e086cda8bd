"""Our calls over TLS reach real archives that demand it, and a call that does not says which setting mends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.association.call import Caller
from dicom_node.errors import Retry
from dicom_node.send import echo, store
from dicom_node.settings import Peer, Settings, Tls
from tests.certificates import Authority
from tests.factories import a_series
from tests.support import Orthanc, eventually, free_port, listens, needs, program, running


@pytest.fixture
def hospital(tmp_path: Path) -> Authority:
    return Authority.founded(tmp_path / "hospital")


@contextmanager
def storescp(folder: Path, tls: Tls | None) -> Iterator[int]:
    """DCMTK's archive; with certificates it speaks to nobody who shows none of its CA."""
    needs("storescp")
    folder.mkdir(exist_ok=True)
    port = free_port()
    secure = ["+tls", tls.key, tls.certificate, "+cf", tls.ca] if tls else []
    command = [program("storescp"), *map(str, secure), "-od", str(folder), str(port)]
    with running(command, folder.parent / "storescp.log", {"TCP_NODELAY": "1"}):
        eventually(lambda: listens(port), 10)
        yield port


def a_peer(port: int, tls: bool = True, host: str = "127.0.0.1", ae_title: str = "PACS") -> Peer:
    return Peer(name="pacs", ae_title=ae_title, host=host, port=port, tls=tls, may=frozenset({"reports"}))


def echoed(port: int, tls: Tls | None, host: str = "127.0.0.1") -> None:
    with Caller(Settings(tls=tls)) as caller:
        try:
            echo(a_peer(port, tls is not None, host), caller)
        except Retry as error:
            raise AssertionError(str(error)) from error


def complaint(port: int, tls: Tls, host: str = "127.0.0.1", secure: bool = True) -> str:
    with Caller(Settings(tls=tls)) as caller, pytest.raises(Retry) as told:
        echo(a_peer(port, secure, host), caller)
    return str(told.value)


def an_image(folder: Path) -> Path:
    path = folder / "image.dcm"
    a_series("leg", 1, name="secret")[0].save_as(path, enforce_file_format=True)
    return path


def test_orthanc_over_mutual_tls(hospital: Authority, tmp_path: Path) -> None:
    its, ours = hospital.issue("pacs"), hospital.issue("node")
    archive = Orthanc(
        tmp_path / "orthanc",
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(its.certificate),
        DicomTlsPrivateKey=str(its.key),
        DicomTlsTrustedCertificates=str(its.ca),
    )
    with archive.started(), Caller(Settings(tls=ours)) as caller:
        peer = a_peer(archive.dicom_port, ae_title=archive.ae_title)
        echo(peer, caller)
        assert store(an_image(tmp_path), peer, caller).status == 0x0000
        assert archive.get("/statistics")["CountInstances"] == 1
        stranger = Authority.founded(tmp_path / "elsewhere").issue("node")
        refused = complaint(archive.dicom_port, stranger.model_copy(update={"ca": ours.ca}))
        assert "does not trust our certificate" in refused
        assert "tls = true" in complaint(archive.dicom_port, ours, secure=False)


def test_storescp_over_mutual_tls(hospital: Authority, tmp_path: Path) -> None:
    ours = hospital.issue("node")
    with storescp(tmp_path / "taken", hospital.issue("pacs")) as port, Caller(Settings(tls=ours)) as caller:
        assert store(an_image(tmp_path), a_peer(port), caller).status == 0x0000
        assert len(list((tmp_path / "taken").iterdir())) == 1


def test_a_certificate_of_another_ca_is_told_with_its_remedy(hospital: Authority, tmp_path: Path) -> None:
    with storescp(tmp_path / "taken", Authority.founded(tmp_path / "elsewhere").issue("pacs")) as port:
        told = complaint(port, hospital.issue("node"))
    assert "shows a certificate that we do not trust" in told
    assert "[tls] ca must hold the CA that issued it" in told


def test_an_expired_certificate_is_told_with_its_remedy(hospital: Authority, tmp_path: Path) -> None:
    expired = hospital.issue("pacs", until=datetime.now(UTC) - timedelta(days=1))
    with storescp(tmp_path / "taken", expired) as port:
        told = complaint(port, hospital.issue("node"))
    assert "expired" in told
    assert "have it renewed there" in told


def test_a_certificate_for_another_host_is_told_with_its_remedy(hospital: Authority, tmp_path: Path) -> None:
    with storescp(tmp_path / "taken", hospital.issue("pacs", "pacs.example.org")) as port:
        ours = hospital.issue("node")
        assert "verify_names = false" in complaint(port, ours)
        assert "verify_names = false" in complaint(port, ours, host="localhost")
        echoed(port, ours.model_copy(update={"verify_names": False}))


def test_a_plain_port_is_told_with_its_remedy(hospital: Authority, tmp_path: Path, orthanc: Orthanc) -> None:
    ours = hospital.issue("node")
    with storescp(tmp_path / "taken", None) as port:
        assert "set tls = false" in complaint(port, ours)
    assert "set tls = false" in complaint(orthanc.dicom_port, ours)


def test_nobody_there_is_not_said_to_be_a_matter_of_tls(hospital: Authority) -> None:
    assert "cannot be reached" in complaint(free_port(), hospital.issue("node"))
