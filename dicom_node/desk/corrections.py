"""What people said about reports, as a table for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.table import Table

from dicom_node.desk.tables import table
from dicom_node.study import Remark, moment


def shown(remarks: Iterable[tuple[Remark, float]]) -> Table:
    """Remarks and when they were heard."""
    rows = (
        (moment(at, "minutes"), remark.kind, remark.said_by, remark.report_uid, _told(remark.changes) or remark.note)
        for remark, at in remarks
    )
    return table("What people said about reports", ("when", "what", "by", "report", "changes or note"), rows)


def _told(changes: str) -> str:
    found: dict[str, dict[str, int]] = json.loads(changes)
    return "; ".join(
        f"{kind} {label} ({count} images)" for kind, labels in found.items() for label, count in labels.items()
    )
