"""One behaviour over SQLite and PostgreSQL: the truth is changed one conditional step at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.errors import Superseded
from dicom_node.ledger import Ledger
from dicom_node.study import Delivery, DueDelivery, Instance, Kind, NotLabelled, State, WrittenReport
from tests.integration.conftest import SetClock


def an_instance(number: int = 1, study: str = "1.2", at: float = 1000.0, **changes: object) -> Instance:
    values: dict[str, object] = {
        "sop_instance_uid": f"{study}.{number}",
        "digest": f"d{number}",
        "study_uid": study,
        "series_uid": f"{study}.0",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "modality": "CT",
        "patient_key": "p",
        "path": Path(f"/spool/{study}.{number}.dcm"),
        "size": 10,
        "received_at": at,
        "peer": "ct1",
        "calling_ae": "CT1",
    }
    return Instance(**{**values, **changes})  # type: ignore[arg-type]


def a_report(uid: str = "9.1", predecessor: str | None = None) -> WrittenReport:
    return WrittenReport(uid, "1.2.840.10008.5.1.4.1.1.88.34", "1.2", "1.2.0", "c", Path("/r.dcm"), predecessor)


def queued(ledger: Ledger, images: int = 2) -> None:
    for number in range(1, images + 1):
        ledger.add_instance(an_instance(number))
    (row,) = ledger.receiving()
    assert ledger.complete(row, "quiet")


def state(ledger: Ledger) -> State:
    row = ledger.study("1.2")
    assert row is not None
    return row.state


def test_an_object_counts_once(ledger: Ledger) -> None:
    assert ledger.add_instance(an_instance())
    assert not ledger.add_instance(an_instance())
    row = ledger.study("1.2")
    assert row is not None
    assert (row.instances, row.state) == (1, State.RECEIVING)


def test_a_database_that_fails_says_so_and_enters_the_next(ledger: Ledger) -> None:
    def rename(old: str, new: str) -> None:
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql(f"alter table {old} rename to {new}")

    rename("study", "away")
    with pytest.raises(SQLAlchemyError, match="study"):
        ledger.add_instance(an_instance())
    rename("away", "study")
    assert ledger.instances("1.2") == [], "neither half is there"
    assert ledger.add_instance(an_instance())


def test_what_was_to_be_written_stands_in_no_error(ledger: Ledger) -> None:
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("drop table delivery")
    with pytest.raises(SQLAlchemyError) as failed:
        ledger.deliveries.settle(
            DueDelivery("9.1", "1.2", "pacs", Path("/r.dcm"), 1, 1), Delivery.FAILED, "no bed for DOE^JOHN"
        )
    assert "delivery" in str(failed.value)
    assert "DOE" not in str(failed.value), "a task's last words go to the log"


@pytest.mark.parametrize("peer", ["a\0b", "M\udcfcller", "x" * 100, "\u65e5\u672c"])
def test_words_from_outside_are_made_safe(ledger: Ledger, peer: str) -> None:
    assert ledger.add_instance(an_instance(peer=peer))
    (found,) = ledger.instances("1.2")
    assert found.peer == peer.replace("\0", "\ufffd").encode(errors="replace").decode()[:64]


def test_other_bytes_under_one_uid_are_kept_and_noted_and_reopen_nothing(ledger: Ledger) -> None:
    queued(ledger)
    assert ledger.add_instance(an_instance(1, digest="other", conflict=True))
    assert state(ledger) == State.QUEUED
    assert len(ledger.instances("1.2")) == 3
    from dicom_node.ledger.schema import not_labelled

    assert ledger.counts(not_labelled, not_labelled.c.reason) == [("another object with this UID came first", 1)]


def test_of_two_objects_with_one_uid_that_meet_the_first_on_the_disk_is_labelled(ledger: Ledger) -> None:
    assert ledger.add_instance(an_instance(1, digest="other", conflict=True)), "the second is entered first"
    assert ledger.add_instance(an_instance(1))
    assert {i.digest: i.conflict for i in ledger.instances("1.2")} == {"d1": False, "other": True}
    assert state(ledger) == State.RECEIVING
    found = ledger.instance("1.2.1")
    assert found is not None
    assert found.digest == "d1"
    ledger.add_instance(an_instance(1, digest="third"))
    assert [i.conflict for i in ledger.instances("1.2") if i.digest == "third"] == [True]


def test_an_image_between_look_and_completion_prevents_it(ledger: Ledger) -> None:
    ledger.add_instance(an_instance(1))
    (row,) = ledger.receiving()
    ledger.add_instance(an_instance(2))
    assert not ledger.complete(row, "quiet")
    assert state(ledger) == State.RECEIVING


def test_one_of_many_workers_gets_the_lease(ledger: Ledger) -> None:
    queued(ledger)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(ledger.claim("1.2", 30))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in found if lease is not None]) == 1


def test_an_overtaken_worker_writes_nothing(ledger: Ledger, clock: SetClock) -> None:
    queued(ledger)
    slow = ledger.claim("1.2", 30)
    assert slow is not None
    clock.now += 31
    assert ledger.release_expired() == ["1.2"]
    fast = ledger.claim("1.2", 30)
    assert fast is not None
    assert not ledger.renew(slow, 30)
    with pytest.raises(Superseded):
        ledger.settle(slow, [a_report("9.9")], [], ["pacs"], "ct1")
    with pytest.raises(Superseded):
        ledger.quarantine(slow, "late")
    assert ledger.settle(fast, [a_report()], [], ["pacs"], "ct1") == State.REPORTED
    assert [r.sop_instance_uid for r in ledger.issued.of_study("1.2")] == ["9.1"]


def test_a_late_image_overtakes_a_running_worker(ledger: Ledger) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.add_instance(an_instance(7))
    with pytest.raises(Superseded):
        ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    assert state(ledger) == State.RECEIVING


def test_settling_twice_reports_once(ledger: Ledger) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    with pytest.raises(Superseded):
        ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    assert len(ledger.deliveries.due(30)) == 1


def test_a_lease_that_is_renewed_does_not_expire(ledger: Ledger, clock: SetClock) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    clock.now += 20
    assert ledger.renew(lease, 30)
    clock.now += 20
    assert ledger.release_expired() == []


def test_bells_ring_once_and_again_after_silence(ledger: Ledger, clock: SetClock) -> None:
    queued(ledger)
    assert ledger.due_studies(30) == ["1.2"]
    ledger.rung_study("1.2")
    assert ledger.due_studies(30) == []
    clock.now += 31
    assert ledger.due_studies(30) == ["1.2"]


def test_a_postponed_study_waits_and_then_is_due(ledger: Ledger, clock: SetClock) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.postpone(lease, "no GPU", clock.now + 10)
    assert ledger.due_studies(30) == []
    assert ledger.claim("1.2", 30) is None
    clock.now += 11
    assert ledger.due_studies(30) == ["1.2"]
    again = ledger.claim("1.2", 30)
    assert again is not None
    assert again.attempt == 2


def test_the_study_is_sent_when_every_destination_has_every_report(ledger: Ledger) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs", "vna"], "ct1")
    for destination, expected in (("pacs", State.REPORTED), ("vna", State.SENT)):
        due = ledger.deliveries.claim(destination, 30, report_uid="9.1")
        assert due is not None
        assert ledger.deliveries.claim(destination, 30, report_uid="9.1") is None
        ledger.deliveries.settle(due, Delivery.SENT, "0x0000")
        assert state(ledger) == expected


def test_a_failed_delivery_needs_a_person_and_can_be_retried(ledger: Ledger) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    due = ledger.deliveries.claim("pacs", 30, report_uid="9.1")
    assert due is not None
    ledger.deliveries.settle(due, Delivery.FAILED, "0xC001 no")
    row = ledger.study("1.2")
    assert row is not None
    assert (row.state, "0xC001 no" in row.reason) == (State.QUARANTINED, True)
    assert ledger.orders.retry_study("1.2")
    assert ledger.deliveries.due(30) == [("9.1", "pacs")]
    assert not ledger.orders.retry_study("1.2")


def test_a_delivery_whose_sender_died_is_due_again(ledger: Ledger, clock: SetClock) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    lost = ledger.deliveries.claim("pacs", 30, report_uid="9.1")
    assert lost is not None
    clock.now += 31
    assert ledger.deliveries.due(30) == [("9.1", "pacs")]
    second = ledger.deliveries.claim("pacs", 30, report_uid="9.1")
    assert second is not None
    ledger.deliveries.settle(second, Delivery.SENT, "0x0000")
    ledger.deliveries.settle(lost, Delivery.WAITING, "too late")
    assert state(ledger) == State.SENT


def test_a_successor_supersedes(ledger: Ledger) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], [], "ct1")
    ledger.add_instance(an_instance(8))
    (row,) = ledger.receiving()
    ledger.complete(row, "quiet")
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report("9.2", predecessor="9.1")], [], [], "ct1")
    current = ledger.issued.current("1.2", "1.2.0")
    assert current is not None
    assert current.sop_instance_uid == "9.2"


def test_nothing_labelled_says_why(ledger: Ledger) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    notes = [NotLabelled(f"1.2.{n}", "1.2.0", "colour image") for n in (1, 2)]
    assert ledger.settle(lease, [], notes, ["pacs"], "ct1") == State.UNLABELLED
    row = ledger.study("1.2")
    assert row is not None
    assert row.reason == "colour image"


def reasons(ledger: Ledger) -> dict[str, str]:
    from dicom_node.ledger.schema import not_labelled

    rows = ledger.counts(not_labelled, not_labelled.c.sop_instance_uid, not_labelled.c.reason)
    return {uid: reason for uid, reason, _ in rows}


def test_why_an_image_is_not_labelled_is_said_as_long_as_it_is_so(ledger: Ledger) -> None:
    queued(ledger, 4)
    ledger.add_instance(an_instance(4, digest="other", conflict=True))
    other = replace(a_report("9.2"), source_series_uid="1.2.9")

    def settled(reports: list[WrittenReport], *notes: NotLabelled) -> dict[str, str]:
        lease = ledger.claim("1.2", 30)
        assert lease is not None
        ledger.settle(lease, reports, notes, [], "ct1")
        assert ledger.holdings.make_again("1.2") or ledger.orders.retry_study("1.2")
        return reasons(ledger)

    stray, unheard = NotLabelled("1.2.1", "1.2.0", "stray"), NotLabelled("1.2.8", "1.2.7", "dispute not allowed")
    localizer = NotLabelled("1.2.2", "1.2.9", "localizer")
    second = {"1.2.4": "another object with this UID came first"}
    told = {"1.2.1": "stray", "1.2.2": "localizer", "1.2.8": "dispute not allowed", **second}
    assert settled([a_report(), other], stray, unheard, localizer) == told
    assert settled([a_report(), other]) == {"1.2.1": "stray", "1.2.2": "localizer", **second}, "nobody looked again"
    assert settled([a_report("9.3", "9.1"), other]) == {"1.2.2": "localizer", **second}, "with late images a stack"
    assert settled([], localizer) == {"1.2.2": "localizer", **second}


def test_refusals_are_counted(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.refuse("CT9", "ANATOMY", "10.0.0.1", "unknown")
    from dicom_node.ledger.schema import refusal

    assert ledger.counts(refusal, refusal.c.calling_ae, refusal.c["count"]) == [("CT9", 3, 1)]


def test_an_object_of_more_than_2_gib_and_words_of_any_kind_are_entered(ledger: Ledger) -> None:
    image = an_instance(1, size=3 << 30, modality="C\0T", calling_ae="X" * 40, peer="ct\udc80")
    assert ledger.add_instance(image)
    (kept,) = ledger.instances("1.2")
    assert (kept.size, kept.modality, kept.calling_ae) == (3 << 30, "C\ufffdT", "X" * 16)
    ledger.refuse("A\0", "B" * 99, "10.0.0.1", "a\0b" * 200)


def test_an_answer_about_commitment_is_owed_until_it_is_told_and_again_when_asked_again(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.deliveries.owe_commitment("7.1", Path("/answer.dcm"), "ct1")
        assert ledger.deliveries.due(30) == [("7.1", "ct1")]
        due = ledger.deliveries.claim("ct1", 30, report_uid="7.1")
        assert due is not None
        ledger.deliveries.settle(due, Delivery.SENT, "0x0000")
        assert ledger.deliveries.due(30) == []


def test_what_an_archive_answers_for_is_sent_and_what_it_does_not_is_sent_again(
    ledger: Ledger, clock: SetClock
) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report("9.1"), a_report("9.2")], [], ["pacs"], "ct1")
    for uid in ("9.1", "9.2"):
        due = ledger.deliveries.claim("pacs", 30, report_uid=uid)
        assert due is not None
        until = clock.now + 600
        ledger.deliveries.settle(due, Delivery.AWAITED, "0x0000", until, sent_uid=uid, transaction_uid="8.1")
    assert ledger.deliveries.commitment_answered("8.1", "vna", {"9.1"}, {}) == 0
    assert ledger.deliveries.commitment_answered("8.1", "pacs", {"9.1"}, {"9.2": "0x0112"}) == 2
    assert state(ledger) == State.REPORTED
    clock.now += 301
    assert ledger.deliveries.due(30) == [("9.2", "pacs")]


def test_a_clock_that_was_set_back_holds_nothing_up(ledger: Ledger, clock: SetClock) -> None:
    clock.now = 90000.0
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    due = ledger.deliveries.claim("pacs", 60, report_uid="9.1")
    assert due is not None
    ledger.deliveries.settle(due, Delivery.WAITING, "away", clock.now + 300, rest=lambda _: 300.0)
    for number, study in enumerate(("1.3", "1.4"), start=1):
        ledger.add_instance(an_instance(number, study=study, at=clock.now))
        ledger.complete(ledger.receiving()[0], "quiet")
        assert ledger.claim(study, 30) is not None
    ledger.add_instance(an_instance(1, study="1.5", at=clock.now))
    clock.now = 2000.0
    assert ledger.store.set_right(300, 30) == 5
    assert ledger.store.set_right(300, 30) == 0
    assert ledger.receiving()[0].last_at == 2000.0
    assert ledger.release_expired() == []
    clock.now += 31
    assert sorted(ledger.release_expired()) == ["1.3", "1.4"]
    clock.now += 300
    assert ledger.deliveries.due(30) == [("9.1", "pacs")]


def test_the_reports_before_one_are_told_whether_it_is_there_or_not(ledger: Ledger) -> None:
    queued(ledger)
    for number in (1, 2, 3):
        lease = ledger.claim("1.2", 30)
        assert lease is not None
        ledger.settle(lease, [a_report(f"9.{number}", f"9.{number - 1}" if number > 1 else None)], [], [], "ct1")
        assert ledger.holdings.make_again("1.2")
    assert [r.sop_instance_uid for r in ledger.issued.earlier("1.2", "1.2.0", "9.2")] == ["9.1"]
    assert [r.sop_instance_uid for r in ledger.issued.earlier("1.2", "1.2.0", "9.9")] == ["9.1", "9.2", "9.3"]


def test_a_lease_that_ran_out_holds_nothing_up_after_the_clock_was_set_back(ledger: Ledger, clock: SetClock) -> None:
    """What nobody works on carries no lease: the chaos rehearsal found a study that waited for the old hour."""
    clock.now = 90000.0
    queued(ledger)
    assert ledger.claim("1.2", 30) is not None
    clock.now += 31
    assert ledger.release_expired() == ["1.2"]
    clock.now -= 7200
    assert ledger.due_studies(30) == ["1.2"]


def laid_aside(ledger: Ledger, study: str, reason: str) -> None:
    """A study that nobody could label."""
    ledger.add_instance(an_instance(study=study))
    row = ledger.study(study)
    assert row is not None
    ledger.complete(row, "quiet")
    lease = ledger.claim(study, 60)
    assert lease is not None
    ledger.quarantine(lease, reason)


def states(ledger: Ledger) -> dict[str, State]:
    return {row.study_uid: row.state for row in ledger.studies()}


def test_a_bad_night_is_tried_again_at_once(ledger: Ledger) -> None:
    for study in ("2.1", "2.2"):
        laid_aside(ledger, study, "the GPU fell off the bus (100%)")
    laid_aside(ledger, "2.3", "its images belong to different patients")
    queued(ledger)
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    assert ledger.settle(lease, [], [NotLabelled("1.2.1", "1.2.0", "no pixel data")], [], "ct1") == State.UNLABELLED
    assert ledger.orders.retry_studies([State.QUARANTINED], "bus (10_%") == 0, "a text, no pattern"
    assert ledger.orders.retry_studies([State.QUARANTINED], "gpu") == 2
    again = {"2.1": State.QUEUED, "2.2": State.QUEUED}
    assert states(ledger) == {**again, "2.3": State.QUARANTINED, "1.2": State.UNLABELLED}
    assert ledger.orders.retry_studies([State.QUARANTINED, State.UNLABELLED]) == 2
    assert set(states(ledger).values()) == {State.QUEUED}
    assert ledger.orders.retry_studies([State.QUARANTINED, State.UNLABELLED]) == 0


def test_what_only_an_archive_refused_is_delivered_again_and_not_labelled_again(ledger: Ledger) -> None:
    laid_aside(ledger, "2.1", "the labeler failed")
    queued(ledger)
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    due = ledger.deliveries.claim("pacs", 60)
    assert due is not None
    ledger.deliveries.settle(due, Delivery.FAILED, "0xA900")
    assert state(ledger) == State.QUARANTINED
    assert ledger.orders.retry_studies([State.QUARANTINED]) == 2
    assert states(ledger) == {"2.1": State.QUEUED, "1.2": State.REPORTED}
    assert ledger.deliveries.claim("pacs", 60) is not None


def test_answers_about_storage_commitment_go_with_their_files(ledger: Ledger, clock: SetClock) -> None:
    removed: list[Path] = []
    for uid, peer in (("7.1", "ct1"), ("7.2", "ct2"), ("7.3", "ct2")):
        ledger.deliveries.owe_commitment(uid, Path(f"/{uid}"), peer)
    due = ledger.deliveries.claim("ct1", 60)
    assert due is not None
    ledger.deliveries.settle(due, Delivery.SENT, "0x0000")
    assert ledger.holdings.forget_answers(clock.now, removed.extend) is None
    clock.now += 100
    ledger.deliveries.owe_commitment("7.4", Path("/7.4"), "ct1")
    assert ledger.deliveries.claim("ct2", 60, report_uid="7.3") is not None
    assert ledger.holdings.forget_answers(clock.now, removed.extend) == {"ct2": 1}
    assert sorted(removed) == [Path("/7.1"), Path("/7.2")]
    assert ledger.holdings.report_paths() == {"/7.3", "/7.4"}


def test_a_sheet_goes_with_the_images_of_its_study(ledger: Ledger, clock: SetClock) -> None:
    removed: list[Path] = []
    queued(ledger)
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    sheet = replace(a_report("9.2"), kind=Kind.SHEET, path=Path("/s.dcm"))
    ledger.settle(lease, [a_report(), sheet], [], ["pacs"], "ct1", ["pacs"])
    for _ in range(2):
        due = ledger.deliveries.claim("pacs", 60)
        assert due is not None
        ledger.deliveries.settle(due, Delivery.SENT, "0x0000")
    purged = ledger.holdings.purge("1.2", clock.now + 1, False, removed.extend, with_sheets=True)
    assert purged is not None
    assert purged.files == 2
    assert removed[2:] == [Path("/s.dcm")]
    assert ledger.holdings.report_paths() == {"/r.dcm"}
    assert ledger.deliveries.has("9.2")
