"""What the rehearsal's judge sees at an archive that was given a node's real reports, whole, doubled and changed."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread

from dicom_node.chaos.pacs import LIST
from dicom_node.chaos.plan import Course
from dicom_node.chaos.scans import Expected
from dicom_node.chaos.verdict import Verdict, judged, settled
from dicom_node.demo.archive import Archive
from dicom_node.uids import derived
from tests.factories import a_series
from tests.parts import Bench


def test_a_kept_promise_a_rival_a_gap_and_a_changed_object(bench: Bench, archive: Archive) -> None:
    images = a_series("leg", 3, name="judged")
    uid = bench.take(images)
    covered = frozenset(str(image.SOPInstanceUID) for image in images)
    expected = [Expected(uid, Course.PLAIN, {str(images[0].SeriesInstanceUID): covered})]
    bench.label(uid)
    assert settled(expected, bench.ledger) == 0
    bench.deliver_all()
    assert settled(expected, bench.ledger) == 1
    verdict = look(bench, archive.folder, expected)
    assert (verdict.lost, verdict.doubled, verdict.left_behind) == ((), (), ())

    (kept,) = archive.folder.glob("*.dcm")
    rival = dcmread(kept)
    rival.SOPInstanceUID = derived("rival")
    rival.save_as(archive.folder / f"{rival.SOPInstanceUID}.dcm")
    (archive.folder / LIST).write_text("1.2 abc\n1.2 def\n")
    doubled = look(bench, archive.folder, expected).doubled
    assert "2 reports at PACS that do not succeed each other" in doubled[0]
    assert "2 different contents" in doubled[1]

    more = Expected(uid, Course.LATE, {str(images[0].SeriesInstanceUID): covered | {"1.2.3"}})
    assert "covers 3 of its 4 images" in look(bench, archive.folder, [more]).lost[0]


def look(bench: Bench, pacs: Path, expected: list[Expected]) -> Verdict:
    return judged(expected, [], [], bench.ledger, bench.settings.home, pacs, [])
