"""The watchdog's judgement, without a worker; and the supervisor's ear, with a real socket."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import structlog

from dicom_node import logs
from dicom_node.completion import to_prepare
from dicom_node.errors import Retry
from dicom_node.ledger import Ledger
from dicom_node.model import Model
from dicom_node.processes import notify, worker
from dicom_node.processes.supervise import Ear
from dicom_node.processes.watchdog import Watchdog
from dicom_node.processes.worker import Guard
from dicom_node.settings import Settings
from dicom_node.tasks import DELIVER_QUEUE, LABEL_QUEUE, app
from labeler.errors import BundleMissing
from labeler.label import Labeler
from tests.support import eventually


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def dog() -> Watchdog:
    return Watchdog(patience=60, longest_task=3600, clock=Clock())


def after(dog: Watchdog, seconds: float) -> str | None:
    dog.clock.now += seconds  # type: ignore[attr-defined]
    return dog.complaint()


def test_a_beat_that_is_not_heard_in_time_tells_of_a_stall(dog: Watchdog) -> None:
    dog.sent(True)
    assert after(dog, 59) is None
    dog.sent(True)
    assert "took nothing from the broker for 61 s" in str(after(dog, 2))


def test_a_beat_that_is_heard_tells_of_life(dog: Watchdog) -> None:
    for _ in range(10):
        dog.sent(True)
        assert after(dog, 30) is None
        dog.heard()


def test_a_broker_that_is_away_is_not_the_consumers_fault(dog: Watchdog) -> None:
    dog.sent(True)
    after(dog, 50)
    dog.sent(False)
    assert after(dog, 50) is None
    dog.sent(True)
    assert after(dog, 59) is None


def test_a_busy_worker_may_leave_beats_unheard_but_not_for_ever(dog: Watchdog) -> None:
    dog.sent(True)
    dog.began("a")
    assert after(dog, 3000) is None
    assert "one task has taken 3601 s" in str(after(dog, 601))
    dog.ended("a")
    assert dog.complaint() is None
    assert dog.busy_for == 0


def test_a_worker_of_several_slots_must_hear_while_one_is_free(dog: Watchdog) -> None:
    dog.slots = 2
    dog.began("a")
    dog.sent(True)
    assert "took nothing" in str(after(dog, 61))
    dog.began("b")
    assert dog.complaint() is None
    dog.ended("a")
    assert dog.busy_for == 0
    assert dog.complaint() is None


def test_signs_reach_whoever_supervises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(tmp_path, "label")
    monkeypatch.setenv("NOTIFY_SOCKET", str(ear.address))
    assert ear.silence() == 0
    notify.ready()
    assert ear.silence() == 0
    assert ear._heard_at is None
    notify._tell("WATCHDOG=1")
    assert 0 <= ear.silence() < 1
    assert ear._heard_at is not None
    ear.forget()
    assert ear._heard_at is None
    ear.close()
    notify.ready()  # nobody listens any more: no harm
    os.environ.pop("NOTIFY_SOCKET")


@pytest.mark.parametrize(
    ("last_at", "prepared_at", "wanted"),
    [(100, 0, True), (100, 99, True), (100, 110, True), (100, 130, False), (100, 131, False), (140, 131, True)],
)
def test_a_study_is_prepared_when_it_has_grown_and_once_more_when_it_is_silent(
    last_at: float, prepared_at: float, wanted: bool
) -> None:
    assert to_prepare(last_at, prepared_at, 30) == wanted


def no_bundle() -> Labeler:
    raise BundleMissing("/x: no such folder")


@pytest.mark.parametrize(
    ("queue", "told"), [(LABEL_QUEUE, "cannot load the model: /x: no such folder"), (DELIVER_QUEUE, "waiting for work")]
)
def test_a_label_worker_tries_its_model_at_once_and_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, queue: str, told: str
) -> None:
    monkeypatch.setattr(worker, "model", lambda: Model(no_bundle))
    monkeypatch.setattr(Guard, "_watch", lambda _: None)
    queues = app.amqp.Queues({}, create_missing=True)
    queues.select([queue])
    monkeypatch.setattr(app.amqp, "queues", queues)
    guard = Guard(Settings())
    guard._ready()
    assert eventually(lambda: guard._doing() == told, 5)
    guard._stop.set()


def test_a_ledger_that_cannot_be_opened_is_said_once_and_tried_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, waits = Guard(Settings()), []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return len(waits) == 8 and not self.set()

    def away() -> object:
        raise Retry("the ledger cannot be opened: file is not a database")

    guard._stop = Stop()
    with structlog.testing.capture_logs() as said:
        assert guard._waited_for(away) is None
    assert [line["reason"] for line in said] == ["the ledger cannot be opened: file is not a database"]
    assert waits[7] > 10 * waits[0]


def test_a_thread_that_fails_is_one_line_without_what_it_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("Doe^Jane")

    monkeypatch.setattr(threading, "excepthook", logs._thread_failed)
    with structlog.testing.capture_logs() as said:
        thread = threading.Thread(target=fail, name="model")
        thread.start()
        thread.join()
    (line,) = said
    assert (line["event"], line["thread"]) == ("a thread failed", "model")
    assert line["reason"].startswith("ValueError in fail (")
    assert "Doe" not in line["reason"]


def test_a_worker_that_starts_before_its_ledger_is_watched_when_that_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there, settings = threading.Event(), Settings(home=tmp_path, stall_seconds=0.4)
    ledger = Ledger(settings.ledger_url)

    def opened(found: object) -> object:
        if not there.is_set():
            raise Retry("the ledger cannot be opened")
        return found

    monkeypatch.setattr(worker, "Ledger", lambda _: opened(ledger))
    monkeypatch.setattr(worker, "model", lambda: opened(Model(no_bundle)))
    monkeypatch.setattr(worker.Bell, "beat", lambda *_: False)
    queues = app.amqp.Queues({}, create_missing=True)
    queues.select([LABEL_QUEUE])
    monkeypatch.setattr(app.amqp, "queues", queues)
    guard = Guard(settings)
    guard.name = "label@here"
    guard._ready()
    time.sleep(0.3)
    assert ledger.pulses.all() == []
    there.set()
    assert eventually(lambda: [sign.process for sign in ledger.pulses.all()] == ["label@here"], 5)
    guard._shut_down()
    ledger.engine.dispose()
