"""Where a header and the pixels disagree, series by series, and how often per scanner. Reads only."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TextIO

from rich.table import Table
from sqlalchemy import and_, select

from dicom_node.desk.tables import table
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import report, study
from dicom_node.reports.header import Agreement
from dicom_node.study import Kind


@dataclass(frozen=True)
class Discrepancy:
    """One series against its header.

    Attributes:
        body_part_examined: as the header has it; empty where it is silent.
        pixels: the term that the labels imply.
        agreement: of Body Part Examined.
        others: other attributes that name another body part.
    """

    peer: str
    study_uid: str
    series_uid: str
    modality: str
    body_part_examined: str
    pixels: str
    agreement: str
    others: str

    @property
    def differs(self) -> bool:
        return self.agreement == Agreement.DIFFER or bool(self.others)


def compared(ledger: Ledger) -> Iterator[Discrepancy]:
    """Every series with a current report against its header, the latest first."""
    columns = (study.c.peer, report.c.study_uid, report.c.source_series_uid, report.c.summary)
    current = and_(report.c.superseded_by == "", report.c.kind == Kind.REPORT)
    wanted = select(*columns).join(study, study.c.study_uid == report.c.study_uid).where(current)
    for row in ledger.rows(wanted.order_by(report.c.created_at.desc())):
        summary = json.loads(row.summary or "{}")
        header = summary.get("header", {})
        others = [name for name, found in summary.get("others", {}).items() if found == Agreement.DIFFER]
        yield Discrepancy(
            row.peer,
            row.study_uid,
            row.source_series_uid,
            summary.get("modality", ""),
            header.get("claimed", ""),
            header.get("implied", ""),
            header.get("agreement", ""),
            ", ".join(others),
        )


def counted(found: Sequence[Discrepancy]) -> Table:
    """Series per scanner: header and pixels agree, differ, one of them is silent."""
    made = Table(title="Body Part Examined against the pixels, series per scanner", title_justify="left")
    made.add_column("peer")
    for agreement in Agreement:
        made.add_column(agreement.value, justify="right")
    for peer in sorted({item.peer for item in found}):
        of_peer = [item.agreement for item in found if item.peer == peer]
        made.add_row(peer, *(str(of_peer.count(agreement)) for agreement in Agreement))
    return made


def listed(found: Sequence[Discrepancy]) -> Table:
    columns = (field.name.replace("_", " ") for field in fields(Discrepancy))
    return table("Series whose header differs", columns, (asdict(item).values() for item in found if item.differs))


def write_csv(found: Sequence[Discrepancy], target: TextIO) -> None:
    """All series that differ, with a header line."""
    writer = csv.DictWriter(target, [field.name for field in fields(Discrepancy)])
    writer.writeheader()
    writer.writerows(asdict(item) for item in found if item.differs)
