"""TLS for associations: TLS 1.2 (ECDHE, AEAD) and 1.3, both sides with certificates (PS3.15 B.12, BCP 195).

A server keeps its context in a `Renewed`, which follows the files. A client makes a context for every association: that
takes a millisecond, and a new certificate counts at once.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import structlog

from dicom_node.errors import ConfigurationError
from dicom_node.settings import Settings, Tls

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


def _context(protocol: ssl._SSLMethod, tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
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
    return getattr(error, "strerror", None) or str(error)


class Renewed:
    """The context made of these files, made anew when one of them changes.

    Files that do not fit together, as while a renewal writes them, leave the context as it was; they are said once.
    """

    def __init__(self, tls: Tls, make: Callable[[Tls], ssl.SSLContext] = server_context) -> None:
        self._tls, self._make, self._lock = tls, make, Lock()
        self._seen = self._state()
        self._context = make(tls)

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
        except ConfigurationError as error:
            log.error("certificates not renewed; the old ones stay in use", reason=str(error))

    def _state(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_state_of(path) for path in (self._tls.certificate, self._tls.key, self._tls.ca))


def _state_of(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns
