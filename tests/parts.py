"""A node in one hand, without processes: spool, ledger, pipeline and time; and what its tables say."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from rich.console import Console

from dicom_node.deliver import Deliverer
from dicom_node.intake import as_instance
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import not_labelled
from dicom_node.pipeline import Pipeline
from dicom_node.settings import Peer, Settings
from dicom_node.spool import Spool
from dicom_node.spool.dataset import file_header, identify
from dicom_node.study import Delivery, Sender, State
from labeler.label import Labeler
from tests.unit.dicom_node.test_spool import bytes_of

LABELER = Labeler.load(device="cpu")


class Clock:
    now = 5_000_000_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """One node without processes: the parts in one hand, time too."""

    def __init__(self, home: Path, archive_port: int, **archive: Any) -> None:
        """`archive` changes how the archive, a peer called `pacs`, is set up; it gets no sheets unless that says so."""
        usual = {"ae_title": "PACS", "host": "127.0.0.1", "may": frozenset({"reports"}), "sheet": False}
        peers = (
            Peer(name="pacs", port=archive_port, **{**usual, **archive}),
            Peer(name="review", ae_title="REVIEW", host="127.0.0.1", may=frozenset({"audit"})),
        )
        self.settings = Settings(home=home, peers=peers, bind="127.0.0.1", port=0, reserve_mib=0)
        self.clock = Clock()
        self.ledger = Ledger(self.settings.ledger_url, self.clock)
        self.spool = Spool(home)
        self.labeler: Any = LABELER
        self.pipeline = Pipeline(self.settings, self.ledger, self.spool, lambda: self.labeler, self.clock)
        self.deliverer = Deliverer(self.settings, self.ledger, self.clock)

    def take(self, images: list[Dataset], cut: int | None = None, peer: str = "ct1") -> str:
        """What the receiver does with pushed images; `cut` keeps only so many bytes of each data set."""
        for image in images:
            raw, syntax = bytes_of(image)[:cut], str(image.file_meta.TransferSyntaxUID)
            identity = identify(raw, syntax)
            header = file_header(identity.sop_class_uid, identity.sop_instance_uid, syntax, "CT1")
            stored = self.spool.store(identity.study_uid, identity.sop_instance_uid, header, raw)
            self.ledger.add_instance(
                as_instance(identity, stored, syntax, identity.sop_class_uid, Sender("CT1", "h", peer))
            )
        return str(images[0].StudyInstanceUID)

    def label(self, study_uid: str) -> State | None:
        for row in self.ledger.receiving():
            self.ledger.complete(row, "quiet")
        return self.pipeline.label_study(study_uid)

    def deliver(self, study_uid: str) -> list[Delivery | None]:
        return [
            self.deliverer.deliver(report.sop_instance_uid, "pacs") for report in self.ledger.issued.of_study(study_uid)
        ]

    def deliver_all(self) -> list[Delivery | None]:
        """What the watcher's bells lead to."""
        return [self.deliverer.deliver(*due) for due in self.ledger.deliveries.due(30.0)]

    def reasons(self) -> dict[str, int]:
        return dict(self.ledger.counts(not_labelled, not_labelled.c.reason))  # type: ignore[arg-type]


def told(tables: Any) -> str:
    console = Console(width=250, file=StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
