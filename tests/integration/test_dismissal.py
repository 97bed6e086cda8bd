"""A person decides that a study will not be labelled, or a report not delivered; over SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy.engine import Connection

from dicom_node.errors import Superseded
from dicom_node.ledger import Ledger, deliveries
from dicom_node.ledger.schema import delivery
from dicom_node.study import Delivery, Dismissal, Lease, NotLabelled, State
from tests.integration.test_concurrency import together
from tests.integration.test_ledger import a_report, an_instance, laid_aside, queued, state, states

WORD = Dismissal("anna", "sent by mistake")


def reason(ledger: Ledger, study: str = "1.2") -> str:
    row = ledger.study(study)
    assert row is not None
    return row.reason


def reported(ledger: Ledger, *destinations: str) -> None:
    """A study whose report is owed to these."""
    queued(ledger)
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], destinations, "ct1")


def claimed_again(ledger: Ledger) -> Lease:
    """The study has grown and is about to be labelled again."""
    ledger.add_instance(an_instance(3))
    (row,) = ledger.receiving()
    assert ledger.complete(row, "quiet")
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    return lease


def answered(ledger: Ledger, destination: str, outcome: Delivery, detail: str = "0xA900") -> None:
    due = ledger.deliveries.claim(destination, 60)
    assert due is not None
    ledger.deliveries.settle(due, outcome, detail)


def delivered(ledger: Ledger) -> dict[str, Delivery]:
    rows = ledger.counts(delivery, delivery.c.destination, delivery.c.state)
    return {destination: Delivery(standing) for destination, standing, _ in rows}


def test_a_dismissed_study_says_who_why_and_what_it_was(ledger: Ledger) -> None:
    laid_aside(ledger, "2.1", "its images belong to different patients")
    assert ledger.orders.dismiss_study("2.1", WORD)
    assert states(ledger) == {"2.1": State.DISMISSED}
    told = reason(ledger, "2.1")
    assert told.startswith("dismissed by anna at 1970-01-01 ")
    assert told.endswith(": sent by mistake; it was quarantined: its images belong to different patients")
    assert not ledger.orders.dismiss_study("2.1", Dismissal("bob", "me too"))
    assert reason(ledger, "2.1") == told


def test_one_without_labels_may_be_dismissed_and_any_other_may_not(ledger: Ledger) -> None:
    assert not ledger.orders.dismiss_study("1.2", WORD), "never came"
    queued(ledger)
    assert not ledger.orders.dismiss_study("1.2", WORD)
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    assert not ledger.orders.dismiss_study("1.2", WORD), "a worker has it"
    ledger.settle(lease, [], [NotLabelled("1.2.1", "1.2.0", "no pixel data")], [], "ct1")
    assert ledger.orders.dismiss_study("1.2", WORD)
    assert reason(ledger).endswith("it was unlabelled: no pixel data")


def test_many_are_dismissed_with_one_word_and_taken_back_with_one(ledger: Ledger) -> None:
    for study in ("2.1", "2.2"):
        laid_aside(ledger, study, "its images belong to different patients")
    laid_aside(ledger, "2.3", "its decoder crashed (100%)")
    assert ledger.orders.dismiss_studies([State.QUARANTINED], "(10_%", WORD) == 0, "a text, no pattern"
    assert ledger.orders.dismiss_studies([State.QUARANTINED], "patients", WORD) == 2
    left = {"2.3": State.QUARANTINED}
    assert states(ledger) == {"2.1": State.DISMISSED, "2.2": State.DISMISSED, **left}
    assert ledger.orders.retry_studies([State.DISMISSED], "by mistake") == 2
    assert states(ledger) == {"2.1": State.QUEUED, "2.2": State.QUEUED, **left}
    assert reason(ledger, "2.1") == ""


def test_a_dismissed_study_is_opened_by_a_late_image_and_by_a_retry(ledger: Ledger) -> None:
    laid_aside(ledger, "1.2", "no")
    ledger.orders.dismiss_study("1.2", WORD)
    assert ledger.claim("1.2", 60) is None
    assert ledger.orders.retry_study("1.2")
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    ledger.quarantine(lease, "no again")
    ledger.orders.dismiss_study("1.2", WORD)
    assert ledger.add_instance(an_instance(2))
    assert (state(ledger), reason(ledger)) == (State.RECEIVING, "")


def test_of_a_dismissal_and_an_image_the_image_wins(ledger: Ledger) -> None:
    for number in range(10):
        study = f"1.{number + 10}"
        laid_aside(ledger, study, "no")
        late = an_instance(2, study=study)
        together(
            lambda late=late: ledger.add_instance(late),  # type: ignore[misc]
            lambda study=study: ledger.orders.dismiss_study(study, WORD),  # type: ignore[misc]
        )
        assert states(ledger)[study] == State.RECEIVING


def test_of_a_dismissal_and_a_worker_one_is_told_that_it_came_too_late(ledger: Ledger) -> None:
    for number in range(10):
        study = f"1.{number + 10}"
        ledger.add_instance(an_instance(study=study))
        (row,) = ledger.receiving()
        ledger.complete(row, "quiet")
        lease = ledger.claim(study, 60)
        assert lease is not None
        ended, dismissed = together(
            lambda lease=lease: ledger.quarantine(lease, "no"),  # type: ignore[misc]
            lambda study=study: ledger.orders.dismiss_study(study, WORD),  # type: ignore[misc]
        )
        assert ended is None
        assert states(ledger)[study] == (State.DISMISSED if dismissed else State.QUARANTINED)
        with pytest.raises(Superseded):
            ledger.quarantine(lease, "again")


def test_of_two_persons_one_has_said_so(ledger: Ledger) -> None:
    for number in range(10):
        study = f"1.{number + 10}"
        laid_aside(ledger, study, "no")
        retried, dismissed = together(
            lambda study=study: ledger.orders.retry_study(study),  # type: ignore[misc]
            lambda study=study: ledger.orders.dismiss_study(study, WORD),  # type: ignore[misc]
        )
        assert retried is True, "a dismissed study may be tried again"
        assert states(ledger)[study] == State.QUEUED
        assert dismissed in (True, False)


def test_a_study_that_only_an_archive_refused_is_dismissed_delivery_by_delivery(ledger: Ledger) -> None:
    reported(ledger, "pacs", "vna")
    assert ledger.deliveries.dismiss(WORD, "pacs") == 0, "it waits"
    answered(ledger, "pacs", Delivery.FAILED)
    answered(ledger, "vna", Delivery.SENT, "0x0000")
    assert not ledger.orders.dismiss_study("1.2", WORD)
    assert ledger.orders.dismiss_studies([State.QUARANTINED], "", WORD) == 0
    assert state(ledger) == State.QUARANTINED
    assert ledger.holdings.purgeable(10_000.0) == []
    assert ledger.deliveries.dismiss(WORD, "vna") == 0
    assert ledger.deliveries.dismiss(WORD, "pacs") == 1
    assert (state(ledger), reason(ledger)) == (State.SENT, "")
    assert delivered(ledger) == {"pacs": Delivery.DISMISSED, "vna": Delivery.SENT}
    assert ledger.deliveries.listed() == []
    assert ledger.holdings.purgeable(10_000.0) == ["1.2"]
    assert not ledger.orders.retry_study("1.2"), "nothing of it failed"
    assert ledger.deliveries.retry_all() == 0


def test_a_dismissed_delivery_keeps_the_answer_and_is_taken_up_by_its_name(ledger: Ledger) -> None:
    reported(ledger, "pacs")
    answered(ledger, "pacs", Delivery.FAILED, "0xA900 unknown patient")
    assert ledger.deliveries.dismiss(WORD, report_uid="9.1") == 1
    ((detail, _),) = ledger.counts(delivery, delivery.c.detail)
    assert detail.startswith("dismissed by anna at ")
    assert detail.endswith(": sent by mistake; the answer was: 0xA900 unknown patient")
    assert ledger.holdings.purge("1.2", 10_000.0, False, lambda paths: None) is not None
    assert ledger.deliveries.retry_all(report_uid="9.1") == 1
    assert (state(ledger), delivered(ledger)) == (State.REPORTED, {"pacs": Delivery.WAITING})
    answered(ledger, "pacs", Delivery.SENT)
    assert state(ledger) == State.SENT


def test_while_another_delivery_is_owed_its_study_waits_for_that(ledger: Ledger) -> None:
    reported(ledger, "pacs", "ris", "vna")
    answered(ledger, "pacs", Delivery.FAILED)
    answered(ledger, "ris", Delivery.FAILED, "0xC000")
    ledger.deliveries.dismiss(WORD, "pacs")
    assert (state(ledger), reason(ledger)) == (State.QUARANTINED, "delivery to ris failed: 0xC000")
    ledger.deliveries.dismiss(WORD, "ris")
    assert state(ledger) == State.REPORTED
    answered(ledger, "vna", Delivery.SENT)
    assert state(ledger) == State.SENT


def test_what_waits_for_an_archive_that_is_gone_is_dismissed_where_that_is_said(ledger: Ledger) -> None:
    reported(ledger, "pacs", "old")
    answered(ledger, "pacs", Delivery.SENT)
    due = ledger.deliveries.claim("old", 60)
    assert due is not None
    assert ledger.deliveries.dismiss(WORD, "old", waiting=True) == 0, "it is under way"
    ledger.deliveries.settle(due, Delivery.WAITING, "no answer")
    assert ledger.deliveries.dismiss(WORD, "old") == 0
    assert ledger.deliveries.dismiss(WORD, "old", waiting=True) == 1
    assert delivered(ledger) == {"pacs": Delivery.SENT, "old": Delivery.DISMISSED}
    assert state(ledger) == State.SENT
    assert ledger.deliveries.claim("old", 60) is None
    assert ledger.deliveries.retry_all("old", "9.1") == 1
    assert state(ledger) == State.REPORTED


def test_of_two_failed_deliveries_one_is_tried_again_and_the_other_stays_told(ledger: Ledger) -> None:
    reported(ledger, "pacs", "vna")
    answered(ledger, "pacs", Delivery.FAILED)
    answered(ledger, "vna", Delivery.FAILED, "0xC000")
    ledger.deliveries.retry_all("pacs")
    answered(ledger, "pacs", Delivery.SENT)
    assert (state(ledger), reason(ledger)) == (State.QUARANTINED, "delivery to vna failed: 0xC000")
    ledger.deliveries.dismiss(WORD, "vna")
    assert state(ledger) == State.SENT


def test_a_last_answer_and_a_dismissal_do_not_each_wait_for_the_other(ledger: Ledger) -> None:
    reported(ledger, "pacs", "vna")
    answered(ledger, "pacs", Delivery.FAILED)
    due = ledger.deliveries.claim("vna", 60)
    assert due is not None
    together(
        lambda: ledger.deliveries.settle(due, Delivery.SENT, "0x0000"),
        lambda: ledger.deliveries.dismiss(WORD, "pacs"),
    )
    assert state(ledger) == State.SENT


def test_an_owed_delivery_keeps_the_images_of_a_dismissed_study(ledger: Ledger) -> None:
    reported(ledger, "pacs")
    answered(ledger, "pacs", Delivery.FAILED)
    lease = claimed_again(ledger)
    ledger.quarantine(lease, "its images belong to different patients")
    assert ledger.orders.dismiss_study("1.2", WORD)
    assert ledger.holdings.purgeable(10_000.0) == []
    assert ledger.deliveries.dismiss(WORD, report_uid="9.1") == 1
    assert state(ledger) == State.DISMISSED, "its other images are still not labelled"
    assert ledger.holdings.purgeable(10_000.0) == ["1.2"]


def test_dismissed_studies_go_as_finished_ones_do_and_promised_ones_stay(ledger: Ledger) -> None:
    laid_aside(ledger, "2.1", "no")
    assert ledger.holdings.purgeable(10_000.0) == []
    ledger.orders.dismiss_study("2.1", WORD)
    assert ledger.holdings.purgeable(500.0) == []
    assert ledger.holdings.purgeable(500.0, early=True) == ["2.1"]
    assert ledger.holdings.purgeable(1500.0) == ["2.1"]
    ledger.holdings.promise(["2.1.1"])
    assert ledger.holdings.purgeable(500.0, early=True) == []


def test_what_changes_nothing_leaves_a_study_that_waits_for_a_person_where_it_was(ledger: Ledger) -> None:
    reported(ledger, "pacs")
    answered(ledger, "pacs", Delivery.FAILED)
    lease = claimed_again(ledger)
    assert ledger.settle(lease, [a_report()], [], ["pacs"], "ct1") == State.QUARANTINED
    assert (state(ledger), reason(ledger)) == (State.QUARANTINED, "delivery to pacs failed: 0xA900")
    assert ledger.deliveries.dismiss(WORD, "pacs") == 1
    assert state(ledger) == State.SENT


def while_it_is_laid_aside(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, order: Callable[[], object]) -> None:
    """Of two failed deliveries one is tried again and arrives; an order about the other comes at that moment."""
    reported(ledger, "pacs", "vna")
    answered(ledger, "pacs", Delivery.FAILED)
    answered(ledger, "vna", Delivery.FAILED)
    ledger.deliveries.retry_all("pacs")
    due = ledger.deliveries.claim("pacs", 60)
    assert due is not None
    tell, telling = deliveries.failure_of, threading.Event()

    def told_slowly(connection: Connection, study_uid: str) -> str:
        telling.set()
        time.sleep(0.3)
        return tell(connection, study_uid)

    def ordered() -> object:
        assert telling.wait(10)
        return order()

    monkeypatch.setattr(deliveries, "failure_of", told_slowly)
    assert together(lambda: ledger.deliveries.settle(due, Delivery.SENT, "0x0000"), ordered) == [None, 1]


def test_a_dismissal_meets_the_answer_that_lays_its_study_aside(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    while_it_is_laid_aside(ledger, monkeypatch, lambda: ledger.deliveries.dismiss(WORD, "vna"))
    assert (state(ledger), delivered(ledger)["vna"]) == (State.SENT, Delivery.DISMISSED)


def test_a_retry_meets_the_answer_that_lays_its_study_aside(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    while_it_is_laid_aside(ledger, monkeypatch, lambda: ledger.deliveries.retry_all("vna"))
    assert (state(ledger), delivered(ledger)["vna"]) == (State.REPORTED, Delivery.WAITING)
    answered(ledger, "vna", Delivery.SENT)
    assert state(ledger) == State.SENT


def test_an_answer_and_a_retry_do_not_each_wait_for_the_other(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    reported(ledger, "pacs", "vna")
    answered(ledger, "pacs", Delivery.FAILED)
    due = ledger.deliveries.claim("vna", 60)
    assert due is not None
    lock, answering = deliveries.lock_study, threading.Event()

    def locked_slowly(connection: Connection, study_uid: str) -> None:
        answering.set()
        time.sleep(0.3)
        lock(connection, study_uid)

    def retried() -> object:
        assert answering.wait(10)
        return ledger.deliveries.retry_all()

    monkeypatch.setattr(deliveries, "lock_study", locked_slowly)
    assert together(lambda: ledger.deliveries.settle(due, Delivery.SENT, "0x0000"), retried) == [None, 1]
    assert (state(ledger), delivered(ledger)) == (State.REPORTED, {"pacs": Delivery.WAITING, "vna": Delivery.SENT})
