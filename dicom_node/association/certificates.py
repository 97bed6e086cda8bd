"""Until when our certificates hold, and whose certificate is at fault where a handshake fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from dicom_node.errors import ConfigurationError
from dicom_node.settings import Tls

_DAY = 86400.0
#: Seconds before the end of a certificate from which on a person is told.
_AHEAD = 30 * _DAY
_OURS = "renew [tls] certificate; `dicom-node config check` says until when it holds"
#: What OpenSSL calls the end of a handshake -> whose fault it is, and what mends it. The first that fits counts.
_WORDS = (
    ("ALERT_CERTIFICATE_EXPIRED", f"it finds that OUR certificate has expired: {_OURS}; else its clock is wrong"),
    (
        "ALERT_UNKNOWN_CA",
        "it does not know the CA of OUR certificate: let it trust that CA; certificates between the two belong into "
        "the file of [tls] certificate",
    ),
    (
        "ALERT_.*CERTIFICATE|ALERT_ACCESS_DENIED",
        "it refuses OUR certificate: let it trust the CA that issued [tls] certificate, and call us by a name in it",
    ),
    ("DID_NOT_RETURN_A_CERTIFICATE", "ITS certificate is missing: give it one of a CA in [tls] ca"),
    ("VERIFY_FAILED.*expired", "ITS certificate has expired: have it renewed there"),
    ("VERIFY_FAILED.*not yet valid", "ITS certificate is not valid yet: check both clocks"),
    ("VERIFY_FAILED", "ITS certificate is of no CA in [tls] ca: add its CA there, or give it a certificate of ours"),
    ("PROTOCOL", "no protocol in common, certificates play no part: let it speak TLS 1.2 or 1.3"),
    ("VERSION_NUMBER|HTTP", "it speaks no TLS: switch TLS on there, or let it call the plain `port`"),
    (
        "CIPHER|HANDSHAKE_FAILURE|INSUFFICIENT_SECURITY|SUITABLE|GROUP",
        "no cipher in common, certificates play no part: let it speak TLS 1.3, or 1.2 with ECDHE and AES-GCM",
    ),
)


def remedy_of(failure: str) -> str:
    """What mends a handshake that failed so, by OpenSSL's name of the failure, and whose certificate it is about."""
    told = "it needs a certificate of a CA in [tls] ca, and TLS 1.2 with ECDHE and AEAD, or 1.3"
    return next((remedy for form, remedy in _WORDS if re.search(form, failure)), told)


@dataclass(frozen=True)
class Held:
    """The certificate of a file that ends first; times are seconds since the epoch."""

    setting: str
    path: Path
    subject: str
    begins: float
    until: float

    def doubt(self, now: float) -> str:
        """What a person should do about it, and why; empty while there is nothing."""
        it = f"[tls] {self.setting} {self.path} ({self.subject})"
        if self.is_over(now):
            return f"{it} {self.stands(now)}: peers are shut out over TLS; renew it, it counts at once"
        if now < self.begins:
            return f"{it} is not valid yet: check this machine's clock"
        if now > self.until - _AHEAD:
            return f"{it} {self.stands(now)}, {(self.until - now) / _DAY:.0f} days more: renew it; it counts at once"
        return ""

    def stands(self, now: float) -> str:
        day = datetime.fromtimestamp(self.until, UTC).date()
        return f"expired on {day}" if self.is_over(now) else f"holds until {day}"

    def is_over(self, now: float) -> bool:
        return now >= self.until


def held(tls: Tls) -> Iterator[Held]:
    """Our certificate, and the CA's whose peers we trust.

    Raises:
        ConfigurationError: a file cannot be read, or holds none.
    """
    for setting, path in (("certificate", tls.certificate), ("ca", tls.ca)):
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"[tls] {setting} {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigurationError(f"[tls] {setting} {path}: holds no certificate in PEM ({error})") from error
        first = min(found, key=lambda one: one.not_valid_after_utc)
        begins, until = first.not_valid_before_utc.timestamp(), first.not_valid_after_utc.timestamp()
        yield Held(setting, path, first.subject.rfc4514_string(), begins, until)
