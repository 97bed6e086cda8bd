"""Stalled and stopped processes are found and started again; a process told to end hands back its work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from dicom_node.demo.archive import Archive
from dicom_node.study import State
from tests.factories import a_series, saved
from tests.node import Node
from tests.support import eventually


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("watchdog")
    with Archive(folder / "archive", "PACS") as archive:
        made = Node(folder / "node", archive.port, "PACS", stall_seconds=4.0, drain_seconds=0.1, lease_seconds=600.0)
        with made.running():
            eventually(lambda: any(sign.process.startswith("label@") for sign in made.ledger.pulses.all()), 60)
            yield made


def log_of(node: Node) -> str:
    return (node.home / "node.log").read_text()


def test_a_worker_that_is_stopped_is_started_again_and_the_study_labelled(node: Node, tmp_path: Path) -> None:
    assert node.supervisor is not None
    stopped = node.supervisor.pid("label")
    os.kill(stopped, signal.SIGSTOP)
    images = a_series("leg", 3, name="stopped")
    node.push(saved(images, tmp_path / "images"))
    node.wait_for(str(images[0].StudyInstanceUID), State.SENT)
    assert node.supervisor.pid("label") != stopped


def test_a_worker_that_takes_nothing_ends_itself_and_the_study_is_labelled(node: Node, tmp_path: Path) -> None:
    """Its consumer is cancelled from outside: the process lives, the broker answers, nothing is taken."""
    assert node.supervisor is not None
    stalled = node.supervisor.pid("label")
    (name,) = [sign.process for sign in node.ledger.pulses.all() if sign.process.startswith("label@")]
    broker = Celery(broker=node.supervisor.environment["DICOM_NODE_BROKER"])
    for queue in ("label", f"beat.{name}"):
        broker.control.cancel_consumer(queue, destination=[name])
    images = a_series("leg", 3, name="stalled")
    node.push(saved(images, tmp_path / "images"))
    node.wait_for(str(images[0].StudyInstanceUID), State.SENT)
    assert node.supervisor.pid("label") != stalled
    assert "took nothing from the broker" in log_of(node)


def test_a_worker_told_to_end_hands_its_study_back_at_once(node: Node, tmp_path: Path) -> None:
    assert node.supervisor is not None
    images = a_series("torso", 300, name="drained")
    uid = str(images[0].StudyInstanceUID)
    node.push(saved(images, tmp_path / "images"))
    node.ledger.prepared(uid, 9e9)  # so that the work is not done before
    eventually(lambda: node.ledger.study(uid).state == State.LABELLING, 60, 0.05)  # type: ignore[union-attr]
    os.kill(node.supervisor.pid("label"), signal.SIGTERM)
    eventually(lambda: node.ledger.study(uid).state == State.QUEUED, 20, 0.05)  # type: ignore[union-attr]
    assert node.ledger.study(uid).attempts == 0  # type: ignore[union-attr]
    node.wait_for(uid, State.SENT, 120)
    assert "handed back" in log_of(node)
