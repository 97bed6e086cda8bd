"""TLS for associations: TLS 1.2 (ECDHE, AEAD) and 1.3, both sides with certificates (PS3.15 B.12, BCP 195).

A server keeps its context in a `Renewed`, which follows the files. A client makes a context for every association: that
takes a millisecond, and a new certificate counts at once.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import structlog

from dicom_node.association.certificates import held, remedy_of
from dicom_node.errors import ConfigurationError
from dicom_node.settings import Peer, Settings, Tls

log = structlog.get_logger("tls")

#: Ephemeral keys and authenticated encryption only; TLS 1.3 knows nothing else.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"


def server_context(tls: Tls) -> ssl.SSLContext:
    """The context in which peers reach us; a peer without a certificate of our CA does not.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(settings: Settings) -> ssl.SSLContext:
    """The context in which we reach a peer with `tls = true`; `wrap_socket` wants `server_hostname=peer.host`.

    Raises:
        ConfigurationError: the settings have no [tls] table, or a file cannot be used.
    """
    if settings.tls is None:
        raise ConfigurationError("a peer wants TLS: add a [tls] table with certificate, key and ca")
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings.tls)
    context.check_hostname = settings.tls.verify_names
    return context


#: Seconds in which a peer that speaks TLS 1.3 has read our certificate: it judges it after the handshake.
_SECOND_THOUGHT = 1.0
#: What OpenSSL finds wrong with a certificate -> what to do about it.
_REMEDIES = {
    9: "it is not valid yet: check the clocks",
    10: "it has expired: have it renewed there",
    18: "[tls] ca must hold the CA that issued it",
    19: "[tls] ca must hold the CA that issued it",
    20: "[tls] ca must hold the CA that issued it",
    62: "call it by the host name in its certificate, or set [tls] verify_names = false",
    64: "call it by the address in its certificate, or set [tls] verify_names = false",
}


def trouble_with(context: ssl.SSLContext, peer: Peer, seconds: float) -> str | None:
    """Why no association over TLS comes about with a peer that we call, and what mends it; None where TLS is fine.

    It connects anew, since what pynetdicom meets on the way stays in its log.
    """
    try:
        with (
            socket.create_connection((peer.host, peer.port or 0), seconds) as plain,
            context.wrap_socket(plain, server_hostname=peer.host) as side,
        ):
            return _second_thought(side)
    except ssl.SSLCertVerificationError as error:
        remedy = _REMEDIES.get(error.verify_code, "see [tls] ca")
        return f"shows a certificate that we do not trust ({error.verify_message}); {remedy}"
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return f"breaks the handshake off ({_why(error)}); {remedy_of(error.reason)}"
        return f"speaks no TLS at this port ({_why(error)}); check its port, or set tls = false"
    except ConnectionResetError:
        return "speaks no TLS at this port (it hung up); check its port, or set tls = false"
    except OSError:
        return None


def _second_thought(side: ssl.SSLSocket) -> str | None:
    """With TLS 1.3 a server judges our certificate when we have done with the handshake; content, it says nothing."""
    side.settimeout(_SECOND_THOUGHT)
    why, remedy = "it hung up", "let it trust the CA of [tls] certificate"
    try:
        side.recv(1)
    except TimeoutError:
        return None
    except ssl.SSLError as error:
        why, remedy = _why(error), remedy_of(error.reason or "")
    except OSError as error:
        why = _why(error)
    return f"does not trust our certificate ({why}); {remedy}"


def _context(protocol: ssl._SSLMethod, tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    for name, path in (("certificate", tls.certificate), ("key", tls.key), ("ca", tls.ca)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"[tls] {name} {path}: {error.strerror}") from error
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"[tls] certificate {tls.certificate}, key {tls.key}: {_why(error)}") from error
    try:
        context.load_verify_locations(tls.ca)
    except OSError as error:
        raise ConfigurationError(f"[tls] ca {tls.ca}: {_why(error)}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password; a service has nobody to ask: store it without, readable by its user only")


def _why(error: Exception) -> str:
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return "the key is not this certificate's; name the two that belong together"
    return getattr(error, "strerror", None) or str(error)


class Renewed:
    """The context made of these files, made anew when one of them changes.

    Files that do not fit together, as while a renewal writes them, leave the context as it was; they are said once.
    """

    def __init__(self, tls: Tls, make: Callable[[Tls], ssl.SSLContext] = server_context) -> None:
        self._tls, self._make, self._lock = tls, make, Lock()
        self._seen = self._state()
        self._context = make(tls)
        self._doubt()

    def context(self) -> ssl.SSLContext:
        """The context for the next connection."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._renew()
            return self._context

    def _renew(self) -> None:
        try:
            self._context = self._make(self._tls)
            log.info("certificates renewed", certificate=str(self._tls.certificate))
            self._doubt()
        except ConfigurationError as error:
            log.error("certificates not renewed; the old ones stay in use", reason=str(error))

    def _doubt(self) -> None:
        """Say it where one of them is over, or soon will be. OpenSSL reads more forms of them than we do."""
        try:
            for doubt in filter(None, (one.doubt(time.time()) for one in held(self._tls))):
                log.error("certificates need a person", reason=doubt)
        except ConfigurationError as error:
            log.warning("when certificates end is not known", reason=str(error))

    def _state(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_state_of(path) for path in (self._tls.certificate, self._tls.key, self._tls.ca))


def _state_of(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns
