"""Labelled as it arrives: the same reports come out with and without what was prepared, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from dicom_node.planes import Planes
from dicom_node.study import State
from dicom_node.tasks import Bell
from dicom_node.watch import sweep
from tests.factories import a_series
from tests.parts import LABELER, Bench


class Counting:
    """The labeler's scorer, counting the pictures that it is asked for."""

    def __init__(self) -> None:
        self.pictures = 0

    def logits(self, pictures: Any, *rest: Any) -> Any:
        self.pictures += len(pictures)
        return LABELER.scorer.logits(pictures, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(LABELER.scorer, name)


@pytest.fixture
def scorer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Counting:
    made = Counting()
    bench.labeler = type(LABELER)(
        made, LABELER.spec, LABELER.thresholds, LABELER.doubt, LABELER.smoothing, LABELER.info
    )
    return made


def some_images() -> list[Dataset]:
    images = [*a_series("torso", 6, name="ahead"), *a_series("head", 4, name="ahead")]
    for image in images:
        image.StudyInstanceUID, image.PatientID = images[0].StudyInstanceUID, images[0].PatientID
        image.PatientName = images[0].PatientName
    images[1].compress(JPEG2000Lossless, generate_instance_uid=False)
    images[2].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return images


def reports_of(bench: Bench, uid: str) -> list[bytes]:
    return sorted(report.path.read_bytes() for report in bench.ledger.issued.of_study(uid))


def waiting(bench: Bench) -> list[Path]:
    return sorted(path for path in (bench.settings.home / "planes").rglob("*") if path.is_file())


def prepare(bench: Bench, uid: str) -> None:
    """In as many turns as a busy machine takes."""
    while not bench.pipeline.prepare(uid):
        pass


def nothing(_: Path) -> None: ...


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def of_another(path: Path) -> None:
    path.write_bytes(b"PLN1" + bytes(100))


@pytest.mark.parametrize("damage", [nothing, cut_short, of_another, Path.unlink])
def test_the_same_reports_come_out_with_and_without(
    bench: Bench, scorer: Counting, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    images = some_images()
    uid = bench.take(images)
    prepare(bench, uid)
    prepared = waiting(bench)
    assert len([path for path in prepared if path.suffix == ".planes"]) == 10
    assert len([path for path in prepared if path.suffix == ".scores"]) == 2
    assert scorer.pictures == 9
    assert bench.pipeline.prepare(uid)
    assert scorer.pictures == 9
    for path in prepared:
        damage(path)
    assert bench.label(uid) == State.REPORTED
    assert scorer.pictures == (9 if damage is nothing else 18)
    assert waiting(bench) == []
    plain = Bench(tmp_path / "plain", 1)
    for instance in bench.ledger.instances(uid):
        plain.ledger.add_instance(instance)
    assert plain.label(uid) == State.REPORTED
    assert reports_of(bench, uid) == reports_of(plain, uid)
    assert bench.reasons() == plain.reasons()
    plain.ledger.engine.dispose()


def test_other_bytes_under_the_same_uid_are_not_mistaken(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 2, name="other"))
    first = bench.ledger.instances(uid)[0]
    planes = Planes(bench.settings.home, 1 << 20)
    places = {
        planes.place(first, "a"),
        planes.place(first, "b"),
        planes.place(type(first)(**{**first.__dict__, "digest": "0" * 64}), "a"),
    }
    assert len(places) == 3


def test_a_full_cache_takes_no_more_and_labelling_goes_on(bench: Bench) -> None:
    bench.pipeline.settings = bench.settings.model_copy(update={"planes_mib": 0})
    uid = bench.take(a_series("leg", 3, name="full"))
    assert bench.pipeline.prepare(uid)
    assert waiting(bench) == []
    assert bench.label(uid) == State.REPORTED


def test_preparing_makes_room_and_goes_on_where_it_was(bench: Bench, scorer: Counting) -> None:
    uid = bench.take(a_series("torso", 40, name="room"))
    bench.pipeline.pressed = lambda: True
    while scorer.pictures == 0:
        assert not bench.pipeline.prepare(uid)
    assert scorer.pictures == 32
    bench.pipeline.pressed = lambda: False
    prepare(bench, uid)
    assert scorer.pictures == 40
    assert bench.label(uid) == State.REPORTED
    assert scorer.pictures == 40


def test_a_study_that_is_no_longer_growing_is_left_to_labelling(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 2, name="late"))
    assert bench.label(uid) == State.REPORTED
    assert bench.pipeline.prepare(uid)
    assert bench.pipeline.prepare("1.2.3")
    assert waiting(bench) == []


def test_old_planes_are_forgotten(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 2, name="old"))
    prepare(bench, uid)
    planes = bench.pipeline.planes
    written = (bench.settings.home / "planes" / uid).stat().st_mtime
    assert planes.drop_older_than(written) == 0
    assert planes.drop_older_than(written + 1) == 1
    assert waiting(bench) == []


class Ear(Bell):
    """A bell that is heard by the test."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def waiting(self, queue: str) -> int:
        return 0

    def _ring(self, name: str, *arguments: str, **_: Any) -> bool:
        self.heard.append((name.removeprefix("dicom_node."), *arguments))
        return True


class Deaf(Ear):
    """A bell whose broker is away: every try takes its time."""

    def _ring(self, name: str, *arguments: str, **_: Any) -> bool:
        super()._ring(name, *arguments)
        return False


def test_a_broker_that_is_away_is_tried_once_in_a_sweep(bench: Bench) -> None:
    for name in ("one", "two", "three"):
        bench.take(a_series("leg", 1, name=name))
    bench.clock.now = max(row.last_at for row in bench.ledger.receiving()) + 1.0
    bell = Deaf()
    sweep(bench.settings, bench.ledger, bell)
    assert len(bell.heard) == 1


def test_the_watcher_rings_for_growth_and_once_more_in_the_silence(bench: Bench) -> None:
    clock, ledger, bell = bench.clock, bench.ledger, Ear()
    uid = bench.take(a_series("leg", 2, name="bell"))
    clock.now = max(instance.received_at for instance in ledger.instances(uid)) + 1.0

    def rings(after: float) -> int:
        clock.now += after
        before = len(bell.heard)
        sweep(bench.settings, ledger, bell)
        return bell.heard[before:].count(("prepare", uid))

    assert rings(0) == 1
    assert rings(1) == 0  # rung, not yet answered
    ledger.prepared(uid, clock.now)
    assert rings(1) == 1  # answered, but the series may still be scored
    assert rings(13) == 0
    ledger.prepared(uid, clock.now + 0.5)
    assert rings(1) == 0  # all is done
    assert rings(44) == 0
    assert ("label_study", uid) in bell.heard
