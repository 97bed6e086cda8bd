"""The sheet to what a person has corrected: beside the report, says who and what, and never in the correction's way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from dicom_node import corrections
from dicom_node.cli import app
from dicom_node.corrections import amend
from dicom_node.demo.archive import Archive
from dicom_node.reconcile import reconcile
from dicom_node.reports.amend import Amendment, Change
from dicom_node.reports.chart import Caption, drawn
from dicom_node.reports.gate import evidence_of
from dicom_node.reports.header import Agreement, Verdict
from dicom_node.reports.palette import FAINT, PANEL, PERSON, TILES, WARNING, Colour
from dicom_node.reports.people import corrected_by, moment_of, upheld_by
from dicom_node.reports.restated import bundle_of, doubts_of, restated
from dicom_node.reports.sheet import corrected_sheet
from dicom_node.reports.word import Verifier, word_of
from dicom_node.study import Delivery, State, WrittenReport
from dicom_node.uids import sheet_uid
from labeler.result import SeriesLabels
from labeler.sr import read_report
from labeler.vocabulary import vocabulary
from tests.factories import a_series, an_answer, as_enhanced
from tests.integration.test_rejections import files_of_notes, notes
from tests.parts import Bench
from tests.remarks import ALL, IMAGES, WHEN, WHO, a_label_of, corrected, grown, heard, made_elsewhere, the_report
from tests.support import errors_of_dciodvfy, needs

#: On a sheet: where the bars stand, and the badge and the line of names.
BARS, HEAD = (slice(236, 960), slice(316, 1330)), (slice(30, 130), slice(900, 1880))


@pytest.fixture
def bench(tmp_path: Path, archive: Archive) -> Iterator[Bench]:
    made = Bench(tmp_path / "home", archive.port, sheet=True, reject_superseded=True)
    yield made
    made.ledger.engine.dispose()


@pytest.fixture
def study(bench: Bench) -> str:
    uid = bench.take(a_series("torso", ALL, name="remarks")[:IMAGES])
    bench.label(uid)
    assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
    return uid


def sheet_to(bench: Bench, report: WrittenReport) -> WrittenReport:
    found = bench.ledger.issued.sheet(sheet_uid(report.sop_instance_uid))
    assert found is not None
    return found


def how_much(sheet: Dataset, colour: Colour, where: tuple[slice, slice] = BARS) -> int:
    return int((sheet.pixel_array[where] == colour).all(axis=-1).sum())


def picture_of(bench: Bench, report: WrittenReport) -> Dataset:
    return dcmread(sheet_to(bench, report).path)


def deliver_until_done(bench: Bench) -> None:
    for _ in range(4):
        bench.deliver_all()
        bench.clock.now += 60


def test_it_arrives_beside_the_corrected_report_and_is_valid(bench: Bench, archive: Archive, study: str) -> None:
    needs("dciodvfy")
    label, before = a_label_of(bench, study), the_report(bench, study)
    written = corrected(bench, study, Change(label, False, 1, 2), Change("urinary_bladder", True, 3, 4))
    assert errors_of_dciodvfy(sheet_to(bench, written).path) == []
    deliver_until_done(bench)
    there = {str(sheet.SOPInstanceUID): sheet for sheet in archive.sheets()}
    first, sheet = there[sheet_uid(before.sop_instance_uid)], there[sheet_uid(written.sop_instance_uid)]
    assert sheet.SeriesInstanceUID == first.SeriesInstanceUID
    assert (int(first.InstanceNumber), int(sheet.InstanceNumber)) == (1, 2)
    assert "(verified)" in sheet.SeriesDescription
    assert written.sop_instance_uid in sheet.DerivationDescription
    assert str(sheet.PatientName) == str(first.PatientName)
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT


def test_it_marks_who_what_was_changed_and_claims_no_probability(bench: Bench, study: str) -> None:
    first = picture_of(bench, the_report(bench, study))
    sheet = picture_of(bench, corrected(bench, study, Change("urinary_bladder", True, 3, 4)))
    assert how_much(first, PERSON) == how_much(first, PERSON, HEAD) == 0
    assert how_much(sheet, PERSON) > 1000
    assert how_much(sheet, PERSON, HEAD) > 1000
    assert how_much(first, WARNING, HEAD) > 1000
    assert how_much(sheet, WARNING, HEAD) == 0
    assert how_much(first, FAINT) > 0
    assert how_much(sheet, FAINT) == 0, "what was not said has no height"
    columns = np.flatnonzero((sheet.pixel_array[BARS] == PERSON).all(axis=-1).any(axis=0))
    assert IMAGES * columns.min() // 1014 == 2, "images 3 and 4 of six, no others"
    assert IMAGES * columns.max() // 1014 == 3


def test_a_removed_label_is_a_frame(bench: Bench, study: str) -> None:
    label = a_label_of(bench, study)
    sheet = picture_of(bench, corrected(bench, study, Change(label, False)))
    mine = (sheet.pixel_array[BARS] == PERSON).all(axis=-1)
    rows = np.flatnonzero(mine.any(axis=1))
    assert len(rows) >= 10
    left = np.flatnonzero(mine.any(axis=0)).min()
    assert (sheet.pixel_array[BARS][(rows[0] + rows[-1]) // 2, left + 8] == PANEL).all()


def test_it_says_when_and_by_whom(bench: Bench, study: str) -> None:
    said = Amendment([Change("brain", True)], WHO, datetime(2026, 5, 4, 10, 30, tzinfo=timezone(timedelta(hours=2))))
    report = dcmread(
        amend(bench.settings, bench.ledger, bench.spool, the_report(bench, study).sop_instance_uid, said).path
    )
    labels = read_report(report, vocabulary())
    assert labels is not None
    answer = an_answer(a_series("torso", IMAGES, name="remarks"), lambda _: ())
    (told,) = corrected_by(report, None, answer, vocabulary()).told
    assert told == "Corrected and verified by Doe, Jane, General Hospital, 2026-05-04 10:30 +0200"


@pytest.mark.parametrize("name", ["Müller^Jürgen", "Ωμέγα^Янь", "Yamada^Tarou=山田^太郎"])
def test_a_name_in_any_letters_is_told_as_well_as_the_font_can(bench: Bench, study: str, name: str) -> None:
    needs("dciodvfy")
    said = Amendment([Change("brain", True)], Verifier(name, "General Hospital"), WHEN)
    report = the_report(bench, study)
    written = amend(bench.settings, bench.ledger, bench.spool, report.sop_instance_uid, said)
    assert errors_of_dciodvfy(sheet_to(bench, written).path) == []
    made = dcmread(written.path)
    (told,) = corrected_by(made, None, an_answer(a_series(images=2), lambda _: ()), vocabulary()).told
    assert told.isascii()
    shown = {"M": "Muller, Jurgen", "Ω": "a person whom the report names", "Y": "Yamada, Tarou"}[name[0]]
    assert told == f"Corrected and verified by {shown}, General Hospital, 2026-05-04 10:30 UTC"


def test_untouched_labels_keep_their_certainty_and_changed_ones_have_none(bench: Bench, study: str) -> None:
    before, words = the_report(bench, study), vocabulary()
    written = corrected(bench, study, Change(a_label_of(bench, study), False, 1, 1), Change("brain", True))
    report = dcmread(written.path)
    said = read_report(report, words)
    assert said is not None
    images = a_series("torso", IMAGES, name="remarks")
    sources = [item.source for item in an_answer(images, lambda _: ()).slices]
    answer = restated(report, said, sources, "CT", "axial", words)
    assert "brain" in answer.by_person
    sheet_says = {f.name: f.certainty for f in answer.findings if f.name not in answer.by_person}
    first = dcmread(before.path)
    first_said = read_report(first, words)
    assert first_said is not None
    model = {f.name: f.certainty for f in restated(first, first_said, sources, "CT", "axial", words).findings}
    assert sheet_says == {name: model[name] for name in sheet_says}
    assert len(sheet_says) == len(model) - 1
    assert bundle_of(report).weights_sha256 == bench.labeler.info.weights_sha256
    assert all(item.probabilities[words.index("brain")] == 1.0 for item in answer.slices)


def test_frames_of_one_file_have_a_sheet(bench: Bench) -> None:
    needs("dciodvfy")
    study = bench.take([as_enhanced(a_series("torso", IMAGES, name="frames"))])
    bench.label(study)
    written = corrected(bench, study, Change("urinary_bladder", True, 2, 3))
    assert errors_of_dciodvfy(sheet_to(bench, written).path) == []
    assert how_much(picture_of(bench, written), PERSON) > 1000


def test_without_readable_pixels_the_sheet_says_so_and_the_correction_goes_out(
    bench: Bench, archive: Archive, study: str
) -> None:
    for image in bench.ledger.instances(study):
        broken = dcmread(image.path)
        broken.PixelData = broken.PixelData[:100]
        broken.save_as(image.path)
    written = corrected(bench, study, Change("urinary_bladder", True))
    deliver_until_done(bench)
    assert written.sop_instance_uid in {str(report.SOPInstanceUID) for report in archive.reports()}
    sheet = picture_of(bench, written)
    tiles = slice(237, 500), slice(1393, 1872)
    assert how_much(sheet, PANEL, tiles) > 10_000, "an empty frame in place of each picture"
    assert how_much(sheet, PERSON) > 1000


def a_report_without_a_sheet(bench: Bench, study: str, tmp_path: Path) -> str:
    """A workstation's verified report, whose sheet the gate stops: it would have a Series Number that is none."""
    theirs = made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))
    theirs.SeriesNumber = 2**31 - 1
    heard(bench, study, theirs)
    return str(theirs.SOPInstanceUID)


def test_a_correction_goes_out_where_no_sheet_can_be_drawn(bench: Bench, study: str, tmp_path: Path) -> None:
    uid = a_report_without_a_sheet(bench, study, tmp_path)
    said = Amendment([Change("brain", True)], WHO, WHEN)
    written = amend(bench.settings, bench.ledger, bench.spool, uid, said)
    assert bench.ledger.issued.sheet(sheet_uid(written.sop_instance_uid)) is None
    assert bench.ledger.issued.current(written.study_uid, written.source_series_uid) is not None
    assert bench.deliverer.deliver(written.sop_instance_uid, "pacs") == Delivery.SENT


def asked_to_amend(bench: Bench, uid: str, tmp_path: Path) -> tuple[str, str]:
    """What the command says, on its two streams."""
    config = tmp_path / "dicom-node.toml"
    config.write_text(
        f'home = "{bench.settings.home}"\nreserve_mib = 0\n[[peers]]\nname = "pacs"\nae_title = "PACS"\n'
        'host = "127.0.0.1"\nport = 104\nmay = ["reports"]\n'
    )
    words = ("amend", uid, "--add", "brain", "--by", "Doe^Jane", "--organization", "General Hospital")
    done = CliRunner().invoke(app, ["--config", str(config), *words])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_the_command_draws_and_has_nothing_to_excuse(bench: Bench, study: str, tmp_path: Path) -> None:
    said, complained = asked_to_amend(bench, the_report(bench, study).sop_instance_uid, tmp_path)
    assert "sheet" not in said + complained
    written = bench.ledger.issued.of_study(study)[-1]
    assert sheet_to(bench, written).path.exists()


def test_the_command_says_where_there_is_none(bench: Bench, study: str, tmp_path: Path) -> None:
    _, complained = asked_to_amend(bench, a_report_without_a_sheet(bench, study, tmp_path), tmp_path)
    assert "no evidence sheet could be drawn" in complained


def test_who_gets_no_sheets_costs_none(tmp_path: Path, archive: Archive) -> None:
    bench = Bench(tmp_path / "home", archive.port)
    study = bench.take(a_series("torso", IMAGES, name="remarks"))
    bench.label(study)
    written = corrected(bench, study, Change("urinary_bladder", True))
    assert bench.ledger.issued.sheet(sheet_uid(written.sop_instance_uid)) is None
    bench.ledger.engine.dispose()


def test_a_lost_one_is_drawn_again_the_same_and_sent(bench: Bench, archive: Archive, study: str) -> None:
    written = corrected(bench, study, Change("urinary_bladder", True, 3, 4))
    path = sheet_to(bench, written).path
    before = path.read_bytes()
    path.unlink()
    bench.deliver_all()
    assert bench.label(study) == State.REPORTED
    assert path.read_bytes() == before
    bench.clock.now += 4000
    deliver_until_done(bench)
    assert sheet_uid(written.sop_instance_uid) in {str(sheet.SOPInstanceUID) for sheet in archive.sheets()}
    current = bench.ledger.issued.current(written.study_uid, written.source_series_uid)
    assert current is not None
    assert current.sop_instance_uid == written.sop_instance_uid


def test_a_lost_one_that_is_no_longer_wanted_is_left_out(bench: Bench, archive: Archive, study: str) -> None:
    written = corrected(bench, study, Change("urinary_bladder", True, 3, 4))
    sheet_to(bench, written).path.unlink()
    changed = Bench(bench.settings.home, archive.port, sheet=False)
    changed.clock.now = bench.clock.now
    assert set(changed.deliver_all()) == {Delivery.SENT, Delivery.LEFT_OUT}
    row = changed.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT, "it is not labelled again and again for a sheet that nobody draws"
    changed.ledger.engine.dispose()


def test_a_second_correction_rejects_the_first_and_its_sheet(bench: Bench, archive: Archive, study: str) -> None:
    first = corrected(bench, study, Change("urinary_bladder", True, 3, 4))
    deliver_until_done(bench)
    said = Amendment([Change("brain", True)], WHO, WHEN)
    amend(bench.settings, bench.ledger, bench.spool, first.sop_instance_uid, said)
    deliver_until_done(bench)
    rejected = {uid for note in notes(archive) for uid in evidence_of(note)}
    both = [the_report(bench, study).sop_instance_uid, first.sop_instance_uid]
    assert rejected == {*both, *map(sheet_uid, both)}
    assert [error for note in files_of_notes(archive) for error in errors_of_dciodvfy(note)] == []
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT


def test_the_sheet_of_what_upholds_a_person_names_and_marks_her_word(bench: Bench) -> None:
    needs("dciodvfy")
    images = a_series("torso", ALL, name="remarks")
    study = bench.take(images[:IMAGES])
    bench.label(study)
    verified = dcmread(corrected(bench, study, Change("urinary_bladder", True, 3, 4)).path)
    newest = grown(bench, images[IMAGES:])
    sheet = picture_of(bench, newest)
    assert errors_of_dciodvfy(sheet_to(bench, newest).path) == []
    assert how_much(sheet, PERSON) > 1000
    assert how_much(sheet, PERSON, HEAD) > 500
    assert how_much(sheet, WARNING, HEAD) > 1000, "nobody has seen it whole"
    word = word_of(verified, vocabulary())
    assert word is not None
    people = upheld_by(an_answer(images, lambda i: ("chest",) if i > 2 else ()), [word])
    assert people.told == (f"{IMAGES} of {ALL} images as verified by Doe, Jane, General Hospital",)
    assert not people.verified


def test_a_moment_that_is_none_is_left_out() -> None:
    report = Dataset()
    assert moment_of(report) == ""
    report.VerifyingObserverSequence = [Dataset()]
    report.VerifyingObserverSequence[0].VerificationDateTime = "20260504103000"
    assert moment_of(report) == "2026-05-04 10:30"


def test_doubts_are_the_summary_s(bench: Bench, study: str) -> None:
    report = dcmread(the_report(bench, study).path)
    text = next(str(e.value) for e in report.iterall() if e.keyword == "TextValue" and "Body stations" in str(e.value))
    listed = text.partition("Not sure: ")[2].splitlines()
    assert doubts_of(report) == (listed[0] if listed else "")


def test_one_is_drawn_again_where_the_sheet_before_it_is_lost_too(bench: Bench, study: str) -> None:
    written = corrected(bench, study, Change("urinary_bladder", True, 3, 4))
    deliver_until_done(bench)
    lost = [sheet_to(bench, report).path for report in (the_report(bench, study), written)]
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    reconcile(bench.settings, bench.spool, bench.ledger)
    bench.label(study)
    assert [path.read_bytes() for path in lost] == before


@pytest.mark.parametrize(("step", "plane"), [(1, "axial"), (-1, None)])
def test_ends_are_named_only_where_a_workstation_left_the_images_in_the_order_of_the_body(
    bench: Bench, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, plane: str | None
) -> None:
    answers: list[SeriesLabels] = []

    def seen(report: Dataset, before: Dataset | None, answer: SeriesLabels, *others: Any) -> Dataset:
        answers.append(answer)
        return corrected_sheet(report, before, answer, *others)

    monkeypatch.setattr(corrections, "corrected_sheet", seen)
    theirs = made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))
    series = theirs.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence = series.ReferencedSOPSequence[::step]
    heard(bench, study, theirs)
    said = Amendment([Change("brain", True)], WHO, WHEN)
    amend(bench.settings, bench.ledger, bench.spool, str(theirs.SOPInstanceUID), said)
    assert [answer.plane for answer in answers] == [plane]


def test_many_doubts_are_cut_short_and_cover_no_picture() -> None:
    answer = an_answer(a_series("torso", IMAGES, name="remarks"), lambda _: ("chest",))
    caption = Caption("series 3", Verdict("CHEST", "CHEST", Agreement.AGREE), "1.2", "now")
    doubted = replace(caption, doubts=", ".join(vocabulary().names))
    pictures = [drawn(answer, {"chest": None}, one, vocabulary()) for one in (caption, doubted)]
    columns = np.flatnonzero((pictures[0] != pictures[1]).any(axis=(0, 2)))
    assert 1000 < columns.max() < TILES[0]
