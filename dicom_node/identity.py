"""The identity guard: do the series of one study belong to one person? Values are compared, never shown.

A study that a merge or a wrong worklist entry has mixed up is not labelled, since its report would be filed under
somebody else. The Patient ID is compared by the ledger's key; here what stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dicom_node.peek import peek
from labeler.errors import is_the_systems

#: Attributes that one person has once (PS3.3 C.7.1.1); an empty one contradicts nothing.
_ONCE = ("PatientName", "PatientBirthDate", "PatientSex")


def identity_of(path: Path) -> dict[str, str]:
    """What a file says of its patient, in a form that ignores how it is written; empty for one gone or beyond reading.

    Raises:
        OSError: the disk does not give it to us now.
    """
    return {keyword: _plain(value) for keyword, value in _said(path, _ONCE).items()}


def is_one_patient(paths: Iterable[Path]) -> bool:
    """Do files whose patients have different keys name one patient all the same?

    Consoles leave the issuer out of what they derive; that names nobody else. Another issuer does, and another ID.
    What cannot be read is not vouched for.

    Raises:
        OSError: the disk does not give one of them to us now.
    """
    named = ("PatientID", "IssuerOfPatientID")
    said = [_said(path, named) for path in paths]
    ids, issuers = ({one.get(keyword, "") for one in said} for keyword in named)
    return len(ids) == 1 and "" not in ids and len(issuers - {""}) <= 1


def _said(path: Path, keywords: Iterable[str]) -> dict[str, str]:
    """These attributes of a file; none of one that is gone or beyond reading, of which the labeler says why."""
    try:
        header = peek(path, ["SpecificCharacterSet", *keywords])
        return {keyword: str(header.get(keyword) or "").strip() for keyword in keywords}
    except Exception as error:  # whatever a hostile file makes the parser raise
        if is_the_systems(error) and not isinstance(error, FileNotFoundError):
            raise
        return {}


def _plain(value: str) -> str:
    """Letters and digits of the first component group: `DOE^JOHN` is `Doe, John`."""
    return " ".join(sorted(re.findall(r"\w+", value.split("=")[0].casefold())))


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
