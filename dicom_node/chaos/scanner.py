"""A scanner that nobody watches: it sends every image again until it is answered 0x0000."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association

from dicom_node.chaos.scans import Errand, Image

#: Seconds that it waits for an association or an answer, shorter than a real one's so that a night passes quickly.
_PATIENCE = 8.0


@dataclass
class Received:
    """What the scanners have been answered: every image acknowledged, and all answers counted."""

    acknowledged: set[Image] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, image: Image, status: int | None) -> None:
        with self._lock:
            self.answers["none" if status is None else f"0x{status:04X}"] += 1
            if status == 0x0000:
                self.acknowledged.add(image)


class Scanners(threading.Thread):
    """One thread a scanner, taking errands as they fall due."""

    def __init__(
        self,
        errands: Sequence[Errand],
        port: int,
        received: Received,
        fallen: Callable[[], int],
        is_reported: Callable[[str], bool],
        stop: threading.Event,
        chance: random.Random,
    ) -> None:
        """`fallen` tells how many blows have fallen, `is_reported` whether PACS has a report on a study."""
        super().__init__(name="scanner", daemon=True)
        _config.STORE_SEND_CHUNKED_DATASET = True  # sends the file's bytes as they are
        self.errands, self.port, self.received, self.fallen = errands, port, received, fallen
        self.is_reported, self.stop, self.chance = is_reported, stop, chance

    def run(self) -> None:
        for errand in self.errands:
            self._until(lambda errand=errand: self.fallen() >= errand.after, 600.0)  # type: ignore[misc]
            for parcel in errand.parcels:
                if errand.waits and parcel is errand.parcels[-1]:
                    self._until(lambda parcel=parcel: self.is_reported(parcel[0].study_uid), 20.0)  # type: ignore[misc]
                self._deliver(parcel)

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        for _ in range(int(seconds / 0.2)):
            if condition() or self.stop.wait(0.2):
                return

    def _deliver(self, parcel: Sequence[Image]) -> None:
        """After a failure it begins again with the first image that was not taken, or with all, as scanners do."""
        left = list(parcel)
        while left and not self.stop.is_set():
            taken = self._associate(left)
            whole = self.chance.random() < 0.3
            left = left[taken:] if not whole or taken == len(left) else list(parcel)
            if left:
                self.stop.wait(self.chance.uniform(0.2, 0.8))

    def _associate(self, images: Sequence[Image]) -> int:
        """Send over one association; how many were taken before it failed."""
        entity = AE("SCANNER")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _PATIENCE
        for sop_class in sorted({image.sop_class_uid for image in images}):
            entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", self.port, ae_title="ANATOMY")
        if not association.is_established:
            self.received.answers["no association"] += 1
            return 0
        try:
            return self._send(association, images)
        finally:
            if association.is_established:
                association.release()

    def _send(self, association: Association, images: Sequence[Image]) -> int:
        for position, image in enumerate(images):
            try:
                status = association.send_c_store(image.path).get("Status")
            except (RuntimeError, ValueError):
                status = None
            self.received.answered(image, status)
            if status != 0x0000:
                return position
        return len(images)
