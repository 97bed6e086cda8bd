"""Certificates made on the spot: a hospital's CA, and what it issues."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from dicom_node.settings import Tls


@dataclass(frozen=True)
class Authority:
    """A CA whose certificates lie in a folder."""

    folder: Path
    ca: trustme.CA

    @classmethod
    def founded(cls, folder: Path) -> Authority:
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, trustme.CA())
        made.ca.cert_pem.write_to_path(folder / "ca.pem")
        return made

    def issue(
        self, name: str, *hosts: str, port: int = 0, verify_names: bool = True, until: datetime | None = None
    ) -> Tls:
        """Certificate and key of `name`, valid for these hosts (else 127.0.0.1) and until then, as settings."""
        begins = min(until, datetime.now(UTC)) - timedelta(days=30) if until else None
        leaf = self.ca.issue_cert(*(hosts or ("127.0.0.1",)), not_before=begins, not_after=until)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return Tls(certificate=certificate, key=key, ca=self.folder / "ca.pem", port=port, verify_names=verify_names)
