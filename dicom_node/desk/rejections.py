"""Who knocked and was not let in, what was refused, and the line of the settings that would change it. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dicom_node.association.admission import admit
from dicom_node.association.certificates import remedy_of
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import refusal
from dicom_node.settings import Settings


@dataclass(frozen=True)
class Rejection:
    """Everybody who was turned away alike: by the same host, with the same AE titles, for the same reason."""

    calling_ae: str
    called_ae: str
    host: str
    reason: str
    count: int
    #: Seconds since the epoch.
    last_at: float
    #: What would admit them, with the settings as they are now; empty where settings do not help, or do by now.
    remedy: str


def rejections(ledger: Ledger, settings: Settings) -> Iterator[Rejection]:
    """The latest first."""
    for row in ledger.rows(refusal.select().order_by(refusal.c.last_at.desc())):
        yield Rejection(
            **{**row._mapping, "remedy": _remedy(row.calling_ae, row.called_ae, row.host, row.reason, settings)}
        )


def _remedy(calling_ae: str, called_ae: str, host: str, reason: str, settings: Settings) -> str:
    if reason.startswith("TLS: "):
        return remedy_of(reason)
    for secure in (True, False):
        admission = admit(calling_ae, called_ae, host, settings, secure=secure)
        if admission.reason == reason:
            return admission.remedy
    return ""
