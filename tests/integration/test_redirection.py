"""What is owed to an archive that was replaced or renamed goes to another; over SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.deliver import Deliverer
from dicom_node.desk.orders import known_receivers, why_not_retried
from dicom_node.desk.status import story
from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import delivery
from dicom_node.settings import Peer, Settings
from dicom_node.study import Delivery, Kind, Redirection, State, WrittenReport
from tests.integration.conftest import SetClock
from tests.integration.test_concurrency import together
from tests.integration.test_desk import ask
from tests.integration.test_dismissal import WORD, answered, claimed_again, delivered, reason, reported
from tests.integration.test_ledger import a_report, state
from tests.parts import told

MOVE = Redirection("anna", "pacs", "archive")


def details(ledger: Ledger) -> dict[str, str]:
    return {
        destination: detail
        for destination, detail, _ in ledger.counts(delivery, delivery.c.destination, delivery.c.detail)
    }


def places(ledger: Ledger) -> set[tuple[str, str, Delivery]]:
    rows = ledger.counts(delivery, delivery.c.report_uid, delivery.c.destination, delivery.c.state)
    return {(uid, destination, Delivery(standing)) for uid, destination, standing, _ in rows}


def settings(home: Path, *names: str) -> Settings:
    peers = [Peer(name=n, ae_title="X", host="127.0.0.1", port=104, may=frozenset({"reports"})) for n in names]
    return Settings(home=home, peers=tuple(peers))


def test_what_waits_is_owed_to_the_other_and_both_say_who_and_when(ledger: Ledger) -> None:
    reported(ledger, "pacs")
    answered(ledger, "pacs", Delivery.WAITING, "no peer is called 'pacs'")
    assert ledger.orders.redirect(MOVE) == 1
    assert delivered(ledger) == {"pacs": Delivery.REDIRECTED, "archive": Delivery.WAITING}
    said = details(ledger)
    assert said["pacs"].startswith("redirected to archive by anna at 1970-01-01 ")
    assert said["pacs"].endswith("; it was waiting: no peer is called 'pacs'")
    assert said["archive"].startswith("redirected from pacs by anna at 1970-01-01 ")
    assert ledger.deliveries.owed() == {"archive": 1}
    assert ledger.deliveries.claim("pacs", 60) is None
    assert ledger.orders.redirect(MOVE) == 0
    answered(ledger, "archive", Delivery.SENT)
    assert (state(ledger), reason(ledger)) == (State.SENT, "")


def test_what_failed_is_too_and_its_study_no_longer_laid_aside(ledger: Ledger) -> None:
    reported(ledger, "pacs", "vna")
    answered(ledger, "pacs", Delivery.FAILED)
    answered(ledger, "vna", Delivery.SENT)
    assert state(ledger) == State.QUARANTINED
    assert ledger.orders.redirect(MOVE) == 1
    assert (state(ledger), reason(ledger)) == (State.REPORTED, "")
    assert ledger.holdings.purgeable(10_000.0) == []
    answered(ledger, "archive", Delivery.FAILED, "0xC000")
    assert (state(ledger), reason(ledger)) == (State.QUARANTINED, "delivery to archive failed: 0xC000")


def test_what_the_other_needed_not_get_while_this_one_was_to_get_it_is_owed_to_it(ledger: Ledger) -> None:
    reported(ledger, "pacs", "archive")
    answered(ledger, "archive", Delivery.FAILED)
    assert ledger.deliveries.dismiss(WORD, to="archive") == 1
    answered(ledger, "pacs", Delivery.FAILED)
    assert ledger.orders.redirect(MOVE) == 1
    assert delivered(ledger) == {"pacs": Delivery.REDIRECTED, "archive": Delivery.WAITING}
    assert state(ledger) == State.REPORTED


def test_each_report_is_owed_once(ledger: Ledger) -> None:
    reported(ledger, "pacs", "archive")
    answered(ledger, "pacs", Delivery.FAILED)
    answered(ledger, "archive", Delivery.SENT, "0x0000")
    assert ledger.orders.redirect(MOVE) == 1
    assert delivered(ledger) == {"pacs": Delivery.REDIRECTED, "archive": Delivery.SENT}
    assert details(ledger)["archive"] == "0x0000"
    assert (state(ledger), reason(ledger)) == (State.SENT, "")


def test_what_is_under_way_stays(ledger: Ledger, clock: SetClock) -> None:
    reported(ledger, "pacs")
    due = ledger.deliveries.claim("pacs", 60)
    assert due is not None
    assert ledger.orders.redirect(MOVE) == 0
    clock.now += 61
    assert ledger.orders.redirect(MOVE) == 1
    ledger.deliveries.settle(due, Delivery.SENT, "late")
    assert not ledger.deliveries.renew(due, 60)
    assert delivered(ledger) == {"pacs": Delivery.REDIRECTED, "archive": Delivery.WAITING}


def test_commitment_is_asked_anew(ledger: Ledger) -> None:
    reported(ledger, "pacs")
    due = ledger.deliveries.claim("pacs", 60)
    assert due is not None
    ledger.deliveries.settle(due, Delivery.AWAITED, "0x0000", 5000.0, "9.1", "7.7")
    assert ledger.orders.redirect(MOVE) == 1
    assert ledger.deliveries.commitment_answered("7.7", "pacs", {"9.1"}, {}) == 0, "it is no longer asked"
    assert ledger.orders.redirect(Redirection("anna", "archive", "pacs")) == 1, "and back: it was the wrong name"
    assert ledger.deliveries.commitment_answered("7.7", "pacs", {"9.1"}, {}) == 0
    assert delivered(ledger) == {"pacs": Delivery.WAITING, "archive": Delivery.REDIRECTED}
    ledger.deliveries.settle(due, Delivery.FAILED, "an attempt of before")
    answered(ledger, "pacs", Delivery.SENT)
    assert state(ledger) == State.SENT


def test_answers_about_commitment_are_for_who_asked(ledger: Ledger) -> None:
    ledger.deliveries.owe_commitment("8.1", Path("/a.dcm"), "pacs")
    assert ledger.orders.redirect(MOVE) == 0
    assert delivered(ledger) == {"pacs": Delivery.WAITING}


def test_of_a_study_whose_every_delivery_was_dismissed_it_is_told_and_taken_back(ledger: Ledger) -> None:
    reported(ledger, "pacs", "vna")
    ledger.deliveries.dismiss(WORD, "pacs", waiting=True)
    ledger.deliveries.dismiss(WORD, "vna", waiting=True)
    assert state(ledger) == State.SENT
    assert reason(ledger).startswith("nothing of it was delivered: dismissed by anna at 1970-01-01 ")
    assert "nothing of it was delivered: dismissed by anna" in told(story(ledger, "1.2"))
    assert "deliveries redirect --from OLD --to NEW --dismissed" in why_not_retried("1.2", ledger.study("1.2"))
    assert ledger.orders.redirect(MOVE) == 0, "what a person has dismissed stays so"
    assert ledger.orders.redirect(MOVE, "9.7", dismissed=True) == 0
    assert ledger.orders.redirect(MOVE, "9.1", dismissed=True) == 1
    assert (state(ledger), reason(ledger)) == (State.REPORTED, "")
    answered(ledger, "archive", Delivery.SENT)
    assert (state(ledger), reason(ledger)) == (State.SENT, "")


@pytest.mark.parametrize("early", [False, True])
def test_so_is_a_purged_one(ledger: Ledger, early: bool) -> None:
    reported(ledger, "pacs")
    ledger.deliveries.dismiss(WORD, "pacs", waiting=True)
    assert ledger.holdings.purge("1.2", 10_000.0, early, lambda paths: None) is not None
    said = why_not_retried("1.2", ledger.study("1.2"))
    assert "nothing of it was delivered" in said
    assert "deliveries redirect --from OLD --to NEW --dismissed" in said
    assert ledger.orders.redirect(MOVE, dismissed=True) == 1
    assert state(ledger) == State.REPORTED


def test_labelled_again_a_study_still_says_that_nothing_of_it_was_delivered(ledger: Ledger) -> None:
    reported(ledger, "pacs")
    ledger.deliveries.dismiss(WORD, "pacs", waiting=True)
    assert ledger.settle(claimed_again(ledger), [a_report()], [], ["pacs"], "ct1") == State.SENT
    assert reason(ledger).startswith("nothing of it was delivered: dismissed by anna")


def test_who_gets_an_outdated_report_gets_what_superseded_it_too(ledger: Ledger, clock: SetClock) -> None:
    reported(ledger, "pacs")
    answered(ledger, "pacs", Delivery.FAILED)
    clock.now += 1
    note = WrittenReport(
        "9.3", "1.2.840.10008.5.1.4.1.1.88.59", "1.2", "1.2.0", "c", Path("/n.dcm"), None, kind=Kind.REJECTION
    )
    with ledger.engine.begin() as connection:
        ledger.issued.enter(connection, a_report("9.2", predecessor="9.1"), ["pacs"])
        ledger.issued.enter(connection, note, ["pacs"])
    for _ in range(2):
        due = ledger.deliveries.claim("pacs", 60)
        assert due is not None
        ended = Delivery.SENT if due.report_uid == "9.2" else Delivery.LEFT_OUT
        ledger.deliveries.settle(due, ended, "", sent_uid=due.report_uid)
    assert ledger.orders.redirect(MOVE) == 1
    assert {(uid, standing) for uid, to, standing in places(ledger) if to == "archive"} == {
        ("9.1", Delivery.WAITING),
        ("9.2", Delivery.WAITING),
        ("9.3", Delivery.WAITING),
    }
    assert ("9.2", "pacs", Delivery.SENT) in places(ledger)


def test_a_redirection_and_a_last_answer_do_not_each_wait_for_the_other(ledger: Ledger) -> None:
    reported(ledger, "pacs", "vna")
    answered(ledger, "pacs", Delivery.FAILED)
    due = ledger.deliveries.claim("vna", 60)
    assert due is not None
    together(
        lambda: ledger.deliveries.settle(due, Delivery.SENT, "0x0000"),
        lambda: ledger.orders.redirect(MOVE),
    )
    assert (state(ledger), delivered(ledger)["archive"]) == (State.REPORTED, Delivery.WAITING)


def test_of_two_redirections_one_moves_it(ledger: Ledger) -> None:
    reported(ledger, "pacs")
    moved = together(
        lambda: ledger.orders.redirect(MOVE),
        lambda: ledger.orders.redirect(Redirection("bob", "pacs", "vna")),
    )
    assert sorted(moved) == [0, 1]
    assert len(ledger.deliveries.listed()) == 1


def test_deliveries_to_nobody_are_told_with_what_mends_it(database: str, ledger: Ledger, tmp_path: Path) -> None:
    reported(ledger, "pacs")
    renamed = settings(tmp_path, "archive").model_copy(update={"ledger": database})
    with pytest.raises(
        ConfigurationError, match=r"1 to pacs\. Give it its name back, or `dicom-node deliveries redirect --from pacs"
    ):
        known_receivers(renamed)
    deliverer = Deliverer(renamed, ledger, ledger.clock)
    deliverer.deliver(None, "pacs")
    assert "deliveries redirect --from pacs --to PEER" in details(ledger)["pacs"]
    ledger.orders.redirect(MOVE)
    assert known_receivers(renamed) == "1 wait or failed"
    assert known_receivers(settings(tmp_path / "none", "archive")) == "nothing waits"
    assert not (tmp_path / "none").exists()


def test_the_command_checks_who_gets_it_and_says_what_stays(tmp_path: Path) -> None:
    config = tmp_path / "dicom-node.toml"
    peer = '[[peers]]\nname = "{}"\nae_title = "{}"\nhost = "127.0.0.1"\nport = 104\nmay = ["{}"]\n'
    config.write_text(
        f'home = "{tmp_path}"\n' + peer.format("archive", "A", "reports") + peer.format("ct1", "C", "push")
    )
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    reported(ledger, "pacs")
    ledger.deliveries.owe_commitment("8.1", Path("/a.dcm"), "pacs")

    def redirect(*words: str) -> str:
        done = ask(config, "deliveries", "redirect", *words)
        return f"{done.exit_code} {' '.join(done.output.split())}"

    assert "no peer is called 'vna'" in redirect("--from", "pacs", "--to", "vna")
    assert "peer 'ct1' gets no reports, archive does" in redirect("--from", "pacs", "--to", "ct1")
    assert redirect("--from", "archive", "--to", "archive").startswith("2 ")
    assert redirect("--from", "pcas", "--to", "archive").startswith("1 no such delivery to pcas failed or waits")
    done = redirect("--from", "pacs", "--to", "archive", "--by", "anna")
    assert done.startswith("0 1 delivery redirected to archive; 1 to pacs stay, under way at this moment")
    assert "redirected from pacs by anna" in " ".join(ask(config, "deliveries").output.split())
    ledger.engine.dispose()
