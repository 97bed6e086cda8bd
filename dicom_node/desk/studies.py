"""Finding a study without knowing its UID. The ledger knows no patient's name or number, only a hash of the number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType
from sqlalchemy import and_, select, true

from dicom_node.desk.tables import listed, moment
from dicom_node.ledger.schema import instance, study
from dicom_node.spool.dataset import patient_key
from dicom_node.study import State, StudyRow


def sought(state: State | None = None, patient_id: str | None = None, issuer: str = "") -> Any:
    """A condition on studies: of this state, with an image of this patient; None fits all."""
    of_state = true() if state is None else study.c.state == state
    if patient_id is None:
        return of_state
    of_patient = select(instance.c.study_uid).where(instance.c.patient_key == patient_key(patient_id, issuer))
    return and_(of_state, study.c.study_uid.in_(of_patient))


def shown(title: str, rows: Iterable[StudyRow], why: bool = False) -> RenderableType:
    """A table of studies; `why`: with what is said of them, where something is said of any."""
    there = list(rows)
    columns = ["last image", "study", "state", "images", "peer"]
    cells = [[moment(row.last_at), row.study_uid, row.state, row.instances, row.peer] for row in there]
    if why and any(row.reason for row in there):
        columns.append("reason")
        cells = [[*cell, row.reason] for cell, row in zip(cells, there, strict=True)]
    return listed(title, columns, cells)
