"""The identity guard: do the series of one study belong to one person? Values are compared, never shown.

A study that a merge or a wrong worklist entry has mixed up is not labelled, since its report would be filed under
somebody else. The Patient ID is compared by the ledger's key; here what stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_node.peek import peek

#: Attributes that one person has once (PS3.3 C.7.1.1); an empty one contradicts nothing.
_ONCE = ("PatientName", "PatientBirthDate", "PatientSex")


def identity_of(path: Path) -> dict[str, str]:
    """What a file says of its patient, in a form that ignores how it is written; empty for a file beyond reading."""
    try:
        header = peek(path, ["SpecificCharacterSet", *_ONCE])
        return {keyword: _plain(header, keyword) for keyword in _ONCE}
    except Exception:  # whatever a hostile file makes the parser raise: the labeler names it, here it says nothing
        return {}


def is_one_patient(paths: Iterable[Path]) -> bool:
    """Do files whose patients have different keys name one patient all the same?

    Consoles leave the issuer out of what they derive; that names nobody else. Another issuer does, and another ID.
    """
    try:
        headers = [peek(path, ["SpecificCharacterSet", "PatientID", "IssuerOfPatientID"]) for path in paths]
    except Exception:  # likewise: what cannot be read is not vouched for
        return False
    ids, issuers = (
        {str(header.get(keyword) or "").strip() for header in headers} for keyword in ("PatientID", "IssuerOfPatientID")
    )
    return len(ids) == 1 and "" not in ids and len(issuers - {""}) <= 1


def _plain(header: Dataset, keyword: str) -> str:
    """Letters and digits of the first component group: `DOE^JOHN` is `Doe, John`."""
    value = str(header.get(keyword) or "").split("=")[0]
    return " ".join(sorted(re.findall(r"\w+", value.casefold())))


def disagreements(by_series: Mapping[str, Iterable[dict[str, str]]]) -> Iterator[str]:
    """Attributes that differ between the series of a study, each with a series that says so and one that does not."""
    for keyword in _ONCE:
        said: dict[str, str] = {}
        for series_uid, found in by_series.items():
            for identity in found:
                if identity.get(keyword):
                    said.setdefault(identity[keyword], series_uid)
        if len(said) > 1:
            first, second, *_ = said.values()
            yield f"{keyword} of series {second} differs from that of {first}"
