"""Images leave the spool when nobody needs them here: their reports are proven delivered, or a person has dismissed
their study, and retention has passed.

When the disk runs low, such studies go before their time, the oldest first, so that scanners are not turned away. What
is unsent, quarantined or still to be decided never goes, and reports stay for good. Sheets, which are pictures of the
images, go with them, where nobody gets notes that reject one later.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from dicom_node.ledger import Ledger
from dicom_node.settings import ADDRESS, Settings
from dicom_node.spool import Spool

log = structlog.get_logger("purge")

_DAY = 86400.0
#: Seconds after a step of the clock in which nothing goes for its age: a day to set a wrong clock right.
DOUBT = _DAY
#: A moment before every promise to a scanner, seconds since the epoch; 0 stands for none.
_BEFORE_ALL = 1.0
#: Studies that go for their age in one pass.
_AT_ONCE = 100


class Purger:
    """Makes room; `steady_since` tells from when the clock can be trusted, seconds since the epoch."""

    def __init__(
        self, settings: Settings, ledger: Ledger, spool: Spool, steady_since: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.settings, self.ledger, self.spool, self.steady_since = settings, ledger, spool, steady_since
        self._full = False
        #: Studies whose files could not be removed, which has been said.
        self._stuck: set[str] = set()

    def purge(self) -> int:
        """One pass; returns how many studies lost their files."""
        if self.settings.destinations == ():
            self.ledger.orders.finish_unowed()
        now = self.ledger.clock()
        kept_since = now - self.settings.retention_days * _DAY
        if now - self.steady_since() < DOUBT:
            return self._make_room(min(kept_since, _BEFORE_ALL))
        purged = self._aged(kept_since) + self._make_room(kept_since)
        self._forget_answers(kept_since)
        return purged

    def _aged(self, kept_since: float) -> int:
        oldest = self.ledger.holdings.purgeable(kept_since, limit=_AT_ONCE + len(self._stuck))
        return sum(self._study(uid, kept_since, early=False) for uid in oldest)

    def _make_room(self, kept_since: float) -> int:
        wanted = (self.settings.reserve_mib + self.settings.purge_margin_mib) << 20
        purged, held = 0, set[str]()
        while (free := self.spool.free()) < wanted:
            oldest = self.ledger.holdings.purgeable(kept_since, early=True, limit=1 + len(held))
            study_uid = next((uid for uid in oldest if uid not in held), None)
            if study_uid is None:
                self._complain(free)
                return purged
            if self._study(study_uid, kept_since, early=True):
                purged += 1
            else:
                held.add(study_uid)
        self._full = False
        return purged

    def _study(self, study_uid: str, kept_since: float, early: bool) -> bool:
        """False where it stays; one whose files cannot be removed, as after a restore, holds up no other."""
        try:
            sheets = not self.settings.receivers_of_rejections
            gone = self.ledger.holdings.purge(study_uid, kept_since, early, self.spool.remove, with_sheets=sheets)
        except OSError as error:
            if study_uid not in self._stuck:
                remedy = "give its folder to the node's user"
                log.error("not purged", study_uid=study_uid, reason=str(error), remedy=remedy)
            self._stuck.add(study_uid)
            return False
        self._stuck.discard(study_uid)
        if gone is not None:
            log.info("purged", study_uid=study_uid, files=gone.files, mib=gone.bytes >> 20, before_its_time=early)
        return gone is not None

    def _forget_answers(self, kept_since: float) -> None:
        if unheard := self.ledger.holdings.forget_answers(kept_since, self.spool.remove):
            log.warning(
                "answers about storage commitment are out of date and dropped",
                unheard_by=dict(unheard),
                remedy="see that the peer listens at its host and port (`dicom-node echo PEER`), and let it ask again",
            )

    def _complain(self, free: int) -> None:
        if not self._full:
            address = f"nobody gets reports: {ADDRESS}; " if self.settings.is_unaddressed else ""
            log.error(
                "the disk runs low and no study may be purged",
                free_mib=free >> 20,
                pushes_refused_below_mib=self.settings.reserve_mib,
                remedy=f"{address}make room; or see `dicom-node status`: studies that wait for a person or an archive "
                "stay until `dicom-node retry` or `dismiss`, failed deliveries until `dicom-node deliveries retry` or "
                "`dismiss`",
            )
        self._full = True
