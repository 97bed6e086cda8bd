"""UIDs of what we make, derived from what it is made of: the same input gives the same object (PS3.5 B.2).

A UID is the UUID-derived `2.25.` form over the first 128 bits of a SHA-256 of the parts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from uuid import UUID

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def derived(*parts: str) -> str:
    """A UID that depends on every part and on nothing else."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return f"2.25.{UUID(bytes=digest[:16], version=4).int}"


def report_series_uid(source_series_uid: str, *apart: str) -> str:
    """One series of reports beside each labelled series; revisions are further instances of it.

    `apart`: the study, where the series of another one has this UID, too.
    """
    return derived("report series", source_series_uid, *apart)


def report_uid(source_series_uid: str, content: str, fingerprint: str, *upheld: str) -> str:
    """The report on exactly this content of a series by exactly this model, where these verified reports are upheld."""
    return derived("report", source_series_uid, content, fingerprint, *upheld)


def sheet_uid(report_uid: str) -> str:
    """The sheet to a report."""
    return derived("sheet", report_uid)


def rejection_uid(sop_instance_uid: str) -> str:
    """The note that rejects a report, or the sheet to one."""
    return derived("rejection", sop_instance_uid)


def content_of(instances: Iterable[tuple[str, str]]) -> str:
    """Hash over (SOP Instance UID, digest of its bytes) in any order: what a report is a report of."""
    joined = "\n".join(f"{uid} {digest}" for uid, digest in sorted(instances))
    return hashlib.sha256(joined.encode()).hexdigest()


def is_uid(value: str) -> bool:
    """At most 64 characters of digits and points, lenient about leading zeros, which scanners write (PS3.5 9.1)."""
    return not fault_of(value)


def fault_of(value: str) -> str:
    """What keeps it from being a UID, without the value itself; empty where nothing does."""
    if len(value) <= 64 and _UID.fullmatch(value):
        return ""
    if not value:
        return "absent"
    if not re.fullmatch(r"[0-9.]*", value):
        return "not of digits and points only"
    return "longer than 64 characters" if _UID.fullmatch(value) else "with a component without digits"
