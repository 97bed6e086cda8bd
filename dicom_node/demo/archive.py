"""A small archive that stands in for PACS: answers C-ECHO, keeps what is stored, one file per SOP Instance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage, SecondaryCaptureImageStorage, Verification
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.uids import is_uid

_TAKEN = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage)


class Archive:
    """Keeps reports and sheets under a folder; `with Archive(...) as archive` listens on `archive.port`."""

    def __init__(
        self, folder: Path, ae_title: str, takes: Sequence[str] = _TAKEN, packed: bool = True, port: int = 0
    ) -> None:
        """`port` 0: a free one."""
        self.folder, self.ae_title, self.takes, self.packed, self._wanted = folder, ae_title, takes, packed, port
        self._server: ThreadedAssociationServer | None = None

    def __enter__(self) -> Archive:
        self.folder.mkdir(parents=True, exist_ok=True)
        entity = AE(self.ae_title)
        entity.add_supported_context(Verification)
        for sop_class in self.takes:
            syntaxes = [RLELossless, *DEFAULT_TRANSFER_SYNTAXES] if self.packed else DEFAULT_TRANSFER_SYNTAXES
            entity.add_supported_context(sop_class, syntaxes)
        handlers = [(evt.EVT_C_STORE, self._keep), (evt.EVT_C_ECHO, lambda _: 0x0000)]
        self._server = entity.start_server(("127.0.0.1", self._wanted), block=False, evt_handlers=handlers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()

    @property
    def port(self) -> int:
        if self._server is None:
            raise RuntimeError("the archive is not open")
        return int(self._server.server_address[1])

    def _keep(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if not is_uid(uid):
            return 0xC000
        part = self.folder / f"{uid}.part"
        part.write_bytes(event.encoded_dataset())
        part.rename(self.folder / f"{uid}.dcm")
        return 0x0000

    def reports(self) -> list[Dataset]:
        return [kept for kept in self._kept() if kept.SOPClassUID != SecondaryCaptureImageStorage]

    def sheets(self) -> list[Dataset]:
        return [kept for kept in self._kept() if kept.SOPClassUID == SecondaryCaptureImageStorage]

    def _kept(self) -> list[Dataset]:
        return [dcmread(path) for path in sorted(self.folder.glob("*.dcm"))]

    def reports_per_series(self) -> Counter[str]:
        """How many current reports the archive has on each source series; a predecessor does not count."""
        reports = self.reports()
        replaced = {uid for report in reports for uid in replaced_by(report)}
        return Counter(source_series(report) for report in reports if report.SOPInstanceUID not in replaced)


def source_series(report: Dataset) -> str:
    """Series Instance UID of the images that a report is about."""
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    return str(evidence.ReferencedSeriesSequence[0].SeriesInstanceUID)


def replaced_by(report: Dataset) -> set[str]:
    """SOP Instance UIDs of the reports that this one succeeds."""
    return {
        str(item.ReferencedSOPInstanceUID)
        for study in report.get("PredecessorDocumentsSequence") or []
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
