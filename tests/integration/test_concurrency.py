"""Many at once, over SQLite and PostgreSQL: what one decides is never undone by who looked a moment earlier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text, update
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.errors import Superseded
from dicom_node.ledger import Ledger, deliveries
from dicom_node.ledger.arrivals import Prepared
from dicom_node.ledger.schema import delivery
from dicom_node.study import Absent, Delivery, State
from tests.integration.conftest import SetClock
from tests.integration.test_ledger import a_report, an_instance, queued, state
from tests.support import at_once


def together(*works: Callable[[], object]) -> list[object]:
    """What each returns or raises, all started at the same moment."""
    barrier, found = threading.Barrier(len(works)), [None] * len(works)

    def run(number: int, work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            found[number] = work()  # type: ignore[call-overload]
        except Exception as error:
            found[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(found)


def push(url: str, first: int, last: int) -> int:
    """A receiver: images of five studies, some of which another sends too."""
    ledger = Ledger(url, SetClock())
    new = sum(ledger.add_instance(an_instance(n, study=f"1.{n % 5}")) for n in range(first, last))
    ledger.engine.dispose()
    return new


def claim(url: str) -> list[str]:
    """A worker: takes what it gets."""
    ledger = Ledger(url, SetClock())
    studies = ledger.due_studies(30)
    taken = [uid for uid in studies if ledger.claim(uid, 30) is not None]
    ledger.engine.dispose()
    return taken


def test_receivers_in_several_processes_count_every_image_once(ledger: Ledger, database: str) -> None:
    entered = at_once(push, [(database, 1, 41), (database, 21, 61), (database, 41, 81)])
    assert sum(entered) == 80
    assert sorted(row.instances for row in ledger.studies()) == [16] * 5


def test_of_two_objects_that_come_under_one_uid_at_once_one_comes_first(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow, meeting = Prepared.run, threading.Barrier(2)

    def entered_together(self: Prepared, *arguments: object) -> object:
        """Where both may enter before either is done, they do."""
        if "study" in self._sql.partition("(")[0]:
            with suppress(threading.BrokenBarrierError):
                meeting.wait(0.5)
        return grow(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Prepared, "run", entered_together)
    rivals = [an_instance(study=f"1.{n}", sop_instance_uid="3.1", digest=f"d{n}") for n in (1, 2)]
    together(*(lambda image=image: ledger.add_instance(image) for image in rivals))  # type: ignore[misc]
    came = [image for study in ("1.1", "1.2") for image in ledger.instances(study)]
    assert sorted(image.conflict for image in came) == [False, True]
    assert sorted(row.state for row in ledger.studies()) == [State.RECEIVING, State.UNLABELLED]


def test_workers_in_several_processes_share_studies_out(ledger: Ledger, database: str) -> None:
    for number in range(40):
        ledger.add_instance(an_instance(1, study=f"1.{number + 10}"))
    for row in ledger.receiving():
        ledger.complete(row, "quiet")
    taken = [uid for share in at_once(claim, [(database,)] * 4) for uid in share]
    assert sorted(taken) == sorted({row.study_uid for row in ledger.studies()})


def test_a_late_image_and_a_settling_worker_never_both_win(ledger: Ledger) -> None:
    for number in range(10):
        study = f"1.{number + 10}"
        ledger.add_instance(an_instance(1, study=study))
        (row,) = ledger.receiving()
        ledger.complete(row, "quiet")
        lease = ledger.claim(study, 30)
        assert lease is not None
        late = an_instance(2, study=study)
        grown, settled = together(
            lambda late=late: ledger.add_instance(late),  # type: ignore[misc]
            lambda lease=lease: ledger.settle(lease, [], [], [], "ct1"),  # type: ignore[misc]
        )
        assert grown is True
        assert settled == State.UNLABELLED or isinstance(settled, Superseded)
        after = ledger.study(study)
        assert after is not None
        assert after.state == State.RECEIVING
        ledger.complete(after, "quiet")


def test_the_last_two_deliveries_do_not_each_wait_for_the_other(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs", "vna"], "ct1")
    both = [ledger.deliveries.claim(name, 30, report_uid="9.1") for name in ("pacs", "vna")]
    look, meeting = deliveries.states_of, threading.Barrier(2)

    def looked_together(*arguments: object) -> set[str]:
        """Where both may look before either is done, they do."""
        with suppress(threading.BrokenBarrierError):
            meeting.wait(1)
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deliveries, "states_of", looked_together)
    together(*(lambda due=due: ledger.deliveries.settle(due, Delivery.SENT, "0x0000") for due in both))  # type: ignore[misc]
    assert state(ledger) == State.SENT


@pytest.mark.parametrize("named_again", [True, False])
def test_an_image_that_comes_again_while_its_study_is_purged_is_back_where_its_file_is(
    ledger: Ledger, tmp_path: Path, named_again: bool
) -> None:
    """Its receiver gave the file its name after the purge took the old one, or found the old one a moment before."""
    image = an_instance(1, path=tmp_path / "image.dcm")
    image.path.write_bytes(b"image")
    ledger.add_instance(image)
    (row,) = ledger.receiving()
    ledger.complete(row, "quiet")
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [], [], [], "ct1")
    removing, pushed = threading.Event(), threading.Event()

    def remove(paths: object) -> None:
        removing.set()
        assert not pushed.wait(0.3), "the ledger let an image in while its file was being removed"
        image.path.unlink()
        if named_again:
            image.path.write_bytes(b"image")

    def push_again() -> bool:
        removing.wait(10)
        entered = ledger.add_instance(image)
        pushed.set()
        return entered

    purged, again = together(lambda: ledger.holdings.purge("1.2", 2000.0, False, remove), push_again)
    assert getattr(purged, "files", purged) == 1
    assert again is named_again
    after = (Absent.HERE, State.RECEIVING) if named_again else (Absent.PURGED, State.PURGED)
    assert [(i.absent, state(ledger)) for i in ledger.instances("1.2")] == [after]


def test_an_answer_about_commitment_takes_no_dismissal_back(ledger: Ledger) -> None:
    queued(ledger)
    lease = ledger.claim("1.2", 30)
    assert lease is not None
    ledger.settle(lease, [a_report()], [], ["pacs"], "ct1")
    due = ledger.deliveries.claim("pacs", 30)
    assert due is not None
    ledger.deliveries.settle(due, Delivery.AWAITED, "0x0000", 5000.0, "9.1", transaction_uid="8.1")
    answered = threading.Thread(
        target=ledger.deliveries.commitment_answered, args=("8.1", "pacs", [], {"9.1": "0x0110"})
    )
    with ledger.engine.begin() as connection:
        connection.execute(update(delivery).values(state=Delivery.DISMISSED))
        answered.start()
        answered.join(0.5)
    answered.join()
    assert ledger.deliveries.is_spared("9.1", "pacs")


def attempt_and_order(url: str, number: int) -> list[str]:
    """Attempts in some processes, orders in the others; what the database said against it."""
    ledger, said = Ledger(url, SetClock()), []
    for turn in range(40):
        try:
            if number % 2:
                ledger.deliveries.retry_all(None if turn % 2 else "pacs")
            elif due := ledger.deliveries.claim("pacs", 30, parallel=4):
                outcome = (Delivery.WAITING, Delivery.FAILED, Delivery.AWAITED)[turn % 3]
                ledger.deliveries.settle(due, outcome, "", rest=lambda _: 0.001)
        except SQLAlchemyError as error:
            said.append(str(error.args[0]))
    ledger.engine.dispose()
    return said


def test_attempts_and_orders_in_several_processes_are_all_carried_out(ledger: Ledger, database: str) -> None:
    for number in range(6):
        study = f"1.{number + 10}"
        ledger.add_instance(an_instance(1, study=study))
        ledger.complete(ledger.receiving()[0], "quiet")
        lease = ledger.claim(study, 30)
        assert lease is not None
        reports = [replace(a_report(f"9.{number}.{n}"), study_uid=study) for n in range(4)]
        ledger.settle(lease, reports, [], ["pacs", "vna"], "ct1")
    assert at_once(attempt_and_order, [(database, number) for number in range(4)]) == [[]] * 4


def test_many_due_rows_are_rung_for_in_turn(ledger: Ledger, clock: SetClock) -> None:
    for number in range(230):
        ledger.add_instance(an_instance(1, study=f"1.{number + 10}"))
    for row in ledger.receiving():
        ledger.complete(row, "quiet")
    rung: list[str] = []
    while due := ledger.due_studies(30):
        for uid in due:
            ledger.rung_study(uid)
        rung += due
    assert len(rung) == len(set(rung)) == 230


def test_a_server_that_cut_all_connections_costs_one_error_at_most(postgresql: str) -> None:
    ledger = Ledger(postgresql, SetClock())
    server = create_engine(postgresql, isolation_level="AUTOCOMMIT")
    cut = text(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> :me"
    )
    ledger.add_instance(an_instance(1))
    with server.connect() as connection:
        me = connection.execute(text("select pg_backend_pid()")).scalar_one()
        connection.execute(cut, {"me": me})
        ledger.add_instance(an_instance(2))
        with ledger.engine.connect() as cut_off:
            cut_off.execute(text("select 1"))
            connection.execute(cut, {"me": me})
            with pytest.raises(SQLAlchemyError):
                cut_off.execute(text("select 1"))
    ledger.add_instance(an_instance(3))
    assert len(ledger.instances("1.2")) == 3
    ledger.engine.dispose()
    server.dispose()


def test_who_stands_still_in_a_transaction_holds_nobody_up_for_ever(postgresql: str) -> None:
    ledger = Ledger(postgresql, SetClock())
    with ledger.engine.connect() as connection:
        bounds = [connection.execute(text(f"show {name}")).scalar_one() for name in _BOUNDS]
    assert bounds == ["30s", "1min"]
    ledger.engine.dispose()


_BOUNDS = ("lock_timeout", "idle_in_transaction_session_timeout")
