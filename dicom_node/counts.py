"""How many images of a study does the archive hold? Asked by C-FIND when images stop coming, and written down.

Beside the watcher's sweep, not in it: an archive that does not answer must not keep other studies waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog

from dicom_node.association.call import Caller
from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.logs import where
from dicom_node.send import objects_of
from dicom_node.settings import Peer, Settings
from dicom_node.study import Counted, StudyRow

log = structlog.get_logger("counts")

#: Seconds for which an archive is left alone that did not answer.
_RESPITE = 60.0


class Counter:
    """Asks the peers with `counts = true`."""

    def __init__(self, settings: Settings, ledger: Ledger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.ledger, self.monotonic = settings, ledger, monotonic
        self._caller = Caller(settings)
        self._not_before: dict[str, float] = {}

    def ask(self) -> int:
        """Ask about every study that has just become silent; returns how many answers were written down."""
        peers = [peer for peer in self.settings.peers if peer.counts]
        coming = self.ledger.receiving() if peers else []
        known = self.ledger.performed.counts() if coming else {}
        return sum(self._asked(peer, row) for peer, row in self._due(peers, coming, known))

    def _due(
        self, peers: Sequence[Peer], coming: Sequence[StudyRow], known: Mapping[str, Sequence[Counted]]
    ) -> Iterator[tuple[Peer, StudyRow]]:
        silence = self.settings.count_seconds
        for peer in peers:
            for row in coming:
                counted = max((c.at for c in known.get(row.study_uid, ()) if c.peer == peer.name), default=row.last_at)
                if self.ledger.clock() >= max(counted, row.last_at) + silence:
                    yield peer, row

    def _asked(self, peer: Peer, row: StudyRow) -> bool:
        if self.monotonic() < self._not_before.get(peer.name, 0.0):
            return False
        try:
            objects = objects_of(peer, self._caller, row.study_uid)
        except Exception as error:  # whatever an archive's answer makes the parser raise is the archive's own
            told = str(error) if isinstance(error, NodeError) else where(error)
            self._not_before[peer.name] = self.monotonic() + _RESPITE
            log.warning("images not counted; the quiet time decides", peer=peer.name, reason=told)
            return False
        self.ledger.performed.counted(row.study_uid, peer.name, objects)
        log.debug("counted", peer=peer.name, study_uid=row.study_uid, objects=objects)
        return True
