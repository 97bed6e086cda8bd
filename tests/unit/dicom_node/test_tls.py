"""Both sides show a certificate of the hospital's CA, over TLS 1.2 or 1.3, or nothing is said at all."""

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dicom_node.association.tls import Renewed, client_context, server_context
from dicom_node.errors import ConfigurationError
from dicom_node.settings import Peer, Settings, Tls
from tests.certificates import Authority


@pytest.fixture
def hospital(tmp_path: Path) -> Authority:
    return Authority.founded(tmp_path / "hospital")


def caller(tls: Tls) -> ssl.SSLContext:
    return client_context(Settings(tls=tls))


def shaken(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "127.0.0.1") -> tuple[str | None, str | None]:
    """Version and cipher of one handshake, with a byte each way; raises the client's error."""
    near, far = socket.socketpair()
    near.settimeout(5)
    far.settimeout(5)

    def serve() -> None:
        with suppress(OSError), server.wrap_socket(far, server_side=True) as side:
            side.sendall(side.recv(1))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=host) as side:
            side.sendall(b"x")
            if side.recv(1) != b"x":
                raise ConnectionResetError("the server hung up")
            return side.version(), (side.cipher() or ("",))[0]
    finally:
        thread.join()
        near.close()
        far.close()


def test_two_members_of_one_hospital_speak_tls_13(hospital: Authority):
    version, cipher = shaken(server_context(hospital.issue("node")), caller(hospital.issue("ct1")))
    assert version == "TLSv1.3"
    assert cipher is not None


def test_tls_12_with_ephemeral_keys_and_authenticated_encryption(hospital: Authority):
    client = caller(hospital.issue("ct1"))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    version, cipher = shaken(server_context(hospital.issue("node")), client)
    assert version == "TLSv1.2"
    assert cipher is not None
    assert cipher.startswith("ECDHE-")
    assert "GCM" in cipher or "CHACHA20" in cipher


@pytest.mark.parametrize(
    "ciphers", ["AES256-GCM-SHA384", "ECDHE+SHA256:ECDHE+SHA384:!AESGCM:!CHACHA20:!ARIA:!CAMELLIA"]
)
def test_static_keys_and_unauthenticated_encryption_are_refused(hospital: Authority, ciphers: str):
    client = caller(hospital.issue("ct1"))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)
    with pytest.raises(OSError, match=r"(?i)handshake failure|reset|hung up|closed"):
        shaken(server_context(hospital.issue("node")), client)


def test_a_stranger_and_one_without_a_certificate_are_refused(hospital: Authority, tmp_path: Path):
    stranger = Authority.founded(tmp_path / "elsewhere").issue("ct1")
    server = server_context(hospital.issue("node"))
    with pytest.raises(OSError, match=r"(?i)alert|reset|hung up|closed|EOF"):
        shaken(server, caller(stranger.model_copy(update={"ca": hospital.folder / "ca.pem"})))
    anonymous = ssl.create_default_context(cafile=hospital.folder / "ca.pem")
    with pytest.raises(OSError, match=r"(?i)alert|reset|hung up|closed|EOF"):
        shaken(server, anonymous)


def test_we_call_nobody_whose_certificate_is_anothers(hospital: Authority, tmp_path: Path):
    ours = hospital.issue("node")
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server_context(Authority.founded(tmp_path / "elsewhere").issue("pacs")), caller(ours))
    misnamed = server_context(hospital.issue("pacs", "other.example.org"))
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(misnamed, caller(ours))
    assert shaken(misnamed, caller(ours.model_copy(update={"verify_names": False})))[0] == "TLSv1.3"


def test_new_certificates_count_from_the_next_connection_on(hospital: Authority, tmp_path: Path):
    renewed = Renewed(hospital.issue("node"))
    first = renewed.context()
    assert renewed.context() is first
    hospital.issue("node")
    assert renewed.context() is not first
    client = caller(hospital.issue("ct1"))
    assert shaken(renewed.context(), client)[0] == "TLSv1.3"


def test_a_ca_that_openssl_takes_is_in_use_even_where_its_end_cannot_be_told(hospital: Authority):
    """OpenSSL's own form, `BEGIN TRUSTED CERTIFICATE`."""
    ca = hospital.folder / "ca.pem"
    tls, plain = hospital.issue("node"), ca.read_bytes()
    ca.write_bytes(trusted(plain))
    renewed = Renewed(tls)
    before = renewed.context()
    ca.write_bytes(trusted(plain) + b"\n")
    with capture_logs() as said:
        assert renewed.context() is not before
    assert [entry["event"] for entry in said] == ["certificates renewed", "when certificates end is not known"]


def trusted(certificate: bytes) -> bytes:
    how = ["openssl", "x509", "-trustout"]
    return subprocess.run(how, input=certificate, capture_output=True, check=True).stdout


def test_files_that_do_not_fit_together_leave_the_old_certificate_in_use(hospital: Authority):
    ours = hospital.issue("node")
    renewed = Renewed(ours)
    first = renewed.context()
    ours.key.write_bytes(hospital.issue("other").key.read_bytes())
    assert renewed.context() is first
    ours.key.unlink()
    assert renewed.context() is first
    hospital.issue("node")
    assert renewed.context() is not first


@pytest.mark.parametrize("field", ["certificate", "key", "ca"])
def test_a_file_that_cannot_be_used_is_named(hospital: Authority, field: str):
    gone = hospital.issue("node").model_copy(update={field: hospital.folder / "gone.pem"})
    with pytest.raises(ConfigurationError, match=r"gone.pem.*No such file"):
        server_context(gone)


def test_a_key_with_a_password_is_told_so_and_nobody_is_asked(hospital: Authority):
    from cryptography.hazmat.primitives import serialization

    ours = hospital.issue("node")
    key = serialization.load_pem_private_key(ours.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    ours.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    with pytest.raises(ConfigurationError, match="has a password"):
        server_context(ours)


def test_a_peer_with_tls_needs_certificates():
    peer = {"name": "ct1", "ae_title": "CT1", "host": "10.1.0.1", "tls": True}
    with pytest.raises(ValueError, match=r"'ct1' has tls = true: add a \[tls\] table"):
        Settings(peers=(Peer(**peer),))
    with pytest.raises(ConfigurationError, match=r"\[tls\] table"):
        client_context(Settings())
