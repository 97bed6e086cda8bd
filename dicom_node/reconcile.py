"""Spool and ledger are made to agree, both ways, before the receiver listens.

A file that the ledger does not know is entered: what a kill left between disk and ledger, or all of them where the
ledger was lost; one that is not whole is laid aside. A row whose file is gone is marked, so that no study is labelled
by half. A report whose file is gone is made again where its images are still here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from dicom_node.errors import NotUnderstood
from dicom_node.intake import as_instance
from dicom_node.ledger import Ledger
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.spool.dataset import read_spooled
from dicom_node.study import Instance, Sender

log = structlog.get_logger("reconcile")


def reconcile(settings: Settings, spool: Spool, ledger: Ledger) -> int:
    """Make them agree; returns how many objects were entered."""
    cleared = spool.clear_incoming()
    known, files = ledger.holdings.paths(), {str(path) for path in spool.files()}
    entered = sum(ledger.add_instance(found, former) for found, former in _unknown(settings, spool, files - known))
    missing = _mark_missing(ledger, known - files)
    again = _reports(spool, ledger)
    if cleared or entered or missing or again:
        log.info("reconciled", entered=entered, missing=missing, reports_made_again=again, half_written_removed=cleared)
    return entered


def _unknown(settings: Settings, spool: Spool, files: set[str]) -> Iterator[tuple[Instance, Callable[[], str]]]:
    """Files that the ledger does not know, so that no purge takes them, in the order of their coming."""
    names = {peer.ae_title: peer.name for peer in settings.peers}
    judged = (spool.judge(Path(path)) for path in files)
    for stored in sorted(filter(None, judged), key=lambda stored: stored.received_at):
        try:
            identity, syntax, calling = read_spooled(stored.path)
        except NotUnderstood as error:
            log.error("not one of our files", path=str(stored.path), reason=str(error))
            continue
        sender = Sender(calling, "", names.get(calling, calling))
        yield as_instance(identity, stored, syntax, identity.sop_class_uid, sender), stored.former_digest


def _mark_missing(ledger: Ledger, gone: set[str]) -> int:
    by_study = ledger.holdings.mark_missing(path for path in gone if not Path(path).exists())
    for study_uid, files in by_study.items():
        log.error("files have left the spool", study_uid=study_uid, files=files, remedy="push the study again")
    return by_study.total()


def _reports(spool: Spool, ledger: Ledger) -> int:
    """Have lost reports made again; returns of how many studies."""
    known, files = ledger.holdings.report_paths(), {str(path) for path in spool.reports.glob("*.dcm")}
    if strays := files - known:
        log.info("reports without a row are kept", files=len(strays), folder=str(spool.reports))
    lost = ledger.holdings.lost_reports([path for path in known - files if not Path(path).exists()])
    again = {uid for uid in {one.study_uid for one in lost if one.repeatable} if ledger.holdings.make_again(uid)}
    for one in lost:
        made = one.repeatable and one.study_uid in again
        result = "made again" if made else "not made again; where it was delivered, it still is"
        log.error("a report's file is gone", report_uid=one.sop_instance_uid, study_uid=one.study_uid, result=result)
    return len(again)
