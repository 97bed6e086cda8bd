"""What people say about our reports, as objects that PACS sends back: disputes and corrections. Pure.

A Key Object Selection with the title Quality Issue (PS3.16 CID 7010) that references a report of ours disputes it. A
VERIFIED report whose predecessor is ours corrects it. Everything else is nobody's remark.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicom_node.study import REPORT_CLASSES, Remark, RemarkKind
from labeler.sr import concept_of, read_report
from labeler.vocabulary import Vocabulary

#: SOP classes in which people answer.
AUDIT_CLASSES = frozenset({KeyObjectSelectionDocumentStorage, *REPORT_CLASSES})

#: Quality Issue; Rejected for Quality Reasons (PS3.16 CID 7010).
_DISPUTES = {"113010", "113001"}
_PERSON_OBSERVER_NAME = "121008"


def hear(data_set: Dataset, ours: Callable[[str], Dataset | None], words: Vocabulary) -> Remark | None:
    """The remark that an object makes on a report of ours.

    Args:
        ours: the report that has, or was sent under, a SOP Instance UID; None when it is none of ours.
    """
    if data_set.SOPClassUID == KeyObjectSelectionDocumentStorage:
        return _dispute(data_set, ours)
    if data_set.SOPClassUID in REPORT_CLASSES and data_set.get("VerificationFlag") == "VERIFIED":
        return _correction(data_set, ours, words)
    return None


def _dispute(selection: Dataset, ours: Callable[[str], Dataset | None]) -> Remark | None:
    if concept_of(selection) not in _DISPUTES:
        return None
    items = list(selection.get("ContentSequence") or [])
    references = [
        str(i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for i in items if "ReferencedSOPSequence" in i
    ]
    report = next((found for uid in references if (found := ours(uid)) is not None), None)
    if report is None:
        return None
    note = " ".join(str(item.TextValue) for item in items if item.get("ValueType") == "TEXT")
    return _remark(RemarkKind.DISPUTE, selection, report, _observer(items), note)


def _correction(corrected: Dataset, ours: Callable[[str], Dataset | None], words: Vocabulary) -> Remark | None:
    before = next((found for uid in predecessors_of(corrected) if (found := ours(uid)) is not None), None)
    if before is None:
        return None
    return correction(corrected, before, words)


def correction(corrected: Dataset, before: Dataset, words: Vocabulary) -> Remark:
    """What the verified successor of a report says: who, and which labels changed on how many images."""
    observers = corrected.get("VerifyingObserverSequence") or []
    name = str(observers[0].get("VerifyingObserverName", "")) if observers else ""
    remark = _remark(RemarkKind.CORRECTION, corrected, before, name, "")
    return replace(remark, changes=json.dumps(difference(before, corrected, words), sort_keys=True))


def _remark(kind: RemarkKind, said: Dataset, report: Dataset, by: str, note: str) -> Remark:
    return Remark(
        kind, str(said.SOPInstanceUID), str(report.SOPInstanceUID), str(report.StudyInstanceUID), by, note[:1024]
    )


def predecessors_of(report: Dataset) -> Iterator[str]:
    """SOP Instance UIDs of the reports that this one says it replaces (PS3.3 C.17.2)."""
    for study in report.get("PredecessorDocumentsSequence") or []:
        for series in study.ReferencedSeriesSequence:
            yield from (str(item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence)


def _observer(items: list[Dataset]) -> str:
    return next((str(item.PersonName) for item in items if concept_of(item) == _PERSON_OBSERVER_NAME), "")


def difference(before: Dataset, after: Dataset, words: Vocabulary) -> dict[str, dict[str, int]]:
    """Images that gained and that lost each label between two reports on the same series."""
    old, new = read_report(before, words), read_report(after, words)
    counts: dict[str, Counter[str]] = {"added": Counter(), "removed": Counter()}
    if old is None or new is None:
        return {key: dict(value) for key, value in counts.items()}
    for key in old.seen.keys() | new.seen.keys():
        was, now = old.seen.get(key, frozenset()), new.seen.get(key, frozenset())
        counts["added"].update(now - was)
        counts["removed"].update(was - now)
    return {key: dict(sorted(value.items())) for key, value in counts.items()}
