"""Scanner -> node -> PACS with real parts: DCMTK pushes, Celery and a Redis-compatible broker work, Orthanc keeps."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.study import State
from dicom_node.uids import derived
from tests.factories import a_dispute, a_series, as_enhanced, saved
from tests.node import Node
from tests.support import Orthanc, errors_of_dciodvfy, errors_of_dsrdump, eventually, needs, tool


@pytest.fixture(scope="module")
def node(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    needs("storescu", "echoscu", "dsrdump", "dciodvfy")
    made = Node(tmp_path_factory.mktemp("node"), orthanc.dicom_port, orthanc.ae_title)
    with made.running():
        yield made


def the_report(node: Node, orthanc: Orthanc, study_uid: str, tmp_path: Path) -> Dataset:
    """The one report on a study of one series, fetched from PACS and accepted by the validators."""
    node.wait_for(study_uid, State.SENT)
    found = orthanc.reports(study_uid)
    assert len(found) == 1
    path = orthanc.file(found[0]["SOPInstanceUID"], tmp_path / "report.dcm")
    assert errors_of_dciodvfy(path) == []
    assert errors_of_dsrdump(path) == []
    return dcmread(path)


def referenced(report: Dataset) -> set[str]:
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    return {str(item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ct_abdomen", "mr_head"])
def test_a_real_series_gets_its_report_in_its_study_and_patient(
    node: Node, orthanc: Orthanc, real_series: Path, tmp_path: Path, name: str
) -> None:
    node.push(real_series / name)
    image = dcmread(next((real_series / name).iterdir()), stop_before_pixels=True)
    report = the_report(node, orthanc, image.StudyInstanceUID, tmp_path)
    assert report.PatientID == image.PatientID
    assert report.PatientName == image.PatientName
    assert report.StudyInstanceUID == image.StudyInstanceUID
    assert report.SeriesInstanceUID != image.SeriesInstanceUID
    assert len(referenced(report)) == len(list((real_series / name).iterdir()))
    text = tool("dsrdump", tmp_path / "report.dcm").stdout
    assert ("Liver" if name == "ct_abdomen" else "Brain") in text


@pytest.mark.parametrize(("compress", "propose"), [("dcmcrle", "-xr"), ("dcmcjpls", "-xt"), ("dcmcjpeg", "-xs")])
def test_a_compressed_series_is_kept_as_sent_and_labelled(
    node: Node, orthanc: Orthanc, tmp_path: Path, compress: str, propose: str
) -> None:
    images = a_series("torso", 6, name=compress)
    folder = saved(images, tmp_path / "plain")
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in folder.iterdir():
        tool(compress, path, packed / path.name)
    node.push(packed, options=(propose,))
    report = the_report(node, orthanc, images[0].StudyInstanceUID, tmp_path)
    assert len(referenced(report)) == 6
    kept = node.ledger.instances(images[0].StudyInstanceUID)
    assert {i.transfer_syntax_uid for i in kept} == {dcmread(packed / "0001.dcm").file_meta.TransferSyntaxUID}


def test_an_enhanced_multi_frame_object_is_reported_by_frames(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    images = a_series("torso", 10, name="enhanced")
    enhanced = as_enhanced(images)
    saved([enhanced], tmp_path / "enhanced")
    node.push(tmp_path / "enhanced", options=("-R",))
    report = the_report(node, orthanc, enhanced.StudyInstanceUID, tmp_path)
    assert referenced(report) == {enhanced.SOPInstanceUID}
    frames = {
        int(number)
        for item in report.iterall()
        if item.keyword == "ReferencedFrameNumber"
        for number in (item.value if item.VM > 1 else [item.value])
    }
    assert frames == set(range(1, 11))


def test_two_interleaved_studies_get_a_report_each(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    torso, leg = a_series("torso", 8, name="inter1"), a_series("leg", 8, name="inter2", body_part="LEG")
    mixed = [image for pair in zip(torso, leg, strict=True) for image in pair]
    node.push(saved(mixed, tmp_path / "mixed"))
    for images in (torso, leg):
        report = the_report(node, orthanc, images[0].StudyInstanceUID, tmp_path)
        assert referenced(report) == {image.SOPInstanceUID for image in images}


def test_a_study_over_several_associations_gets_one_report(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    images = a_series("torso", 9, name="pieces")
    for part in range(3):
        node.push(saved(images[part::3], tmp_path / f"part{part}"))
    report = the_report(node, orthanc, images[0].StudyInstanceUID, tmp_path)
    assert len(referenced(report)) == 9


def test_the_same_images_sent_again_change_nothing(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    images = a_series("leg", 6, name="again", body_part="LEG")
    folder = saved(images, tmp_path / "images")
    node.push(folder)
    first = the_report(node, orthanc, images[0].StudyInstanceUID, tmp_path)
    node.push(folder)
    row = node.ledger.study(images[0].StudyInstanceUID)
    assert row is not None
    assert row.state == State.SENT
    assert orthanc.reports(images[0].StudyInstanceUID)[0]["SOPInstanceUID"] == first.SOPInstanceUID


def test_late_images_make_a_successor_not_a_rival(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    images = a_series("torso", 8, name="late")
    uid = images[0].StudyInstanceUID
    node.push(saved(images[:5], tmp_path / "early"))
    first = the_report(node, orthanc, uid, tmp_path)
    node.push(saved(images[5:], tmp_path / "late"))
    found = eventually(lambda: [r for r in orthanc.reports(uid) if r["SOPInstanceUID"] != first.SOPInstanceUID])
    second = dcmread(orthanc.file(found[0]["SOPInstanceUID"], tmp_path / "second.dcm"))
    assert errors_of_dciodvfy(tmp_path / "second.dcm") == []
    assert second.SeriesInstanceUID == first.SeriesInstanceUID
    previous = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert previous.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert len(referenced(second)) == 8


def test_an_object_that_we_do_not_label_is_taken_and_its_reason_kept(node: Node, tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    capture = dcmread(str(get_testdata_file("SC_rgb_small_odd.dcm")))
    capture.SeriesInstanceUID = derived("capture series")
    capture.StudyInstanceUID = derived("capture study")
    node.push(saved([capture], tmp_path / "capture"))
    node.wait_for(capture.StudyInstanceUID, State.UNLABELLED)
    row = node.ledger.study(capture.StudyInstanceUID)
    assert row is not None
    assert "neither CT nor MR" in row.reason


def test_kill_9_of_worker_and_broker_leaves_exactly_one_report(orthanc: Orthanc, tmp_path: Path) -> None:
    needs("storescu")
    node = Node(tmp_path / "node", orthanc.dicom_port, orthanc.ae_title)
    with node.running():
        images = a_series("torso", 40, name="killed worker")
        node.push(saved(images, tmp_path / "a"))
        uid = images[0].StudyInstanceUID
        node.wait_for(uid, State.LABELLING)
        node.kill("label")
        node.wait_for(uid, State.SENT)
        row = node.ledger.study(uid)
        assert row is not None
        assert row.attempts == 2
        assert len(orthanc.reports(uid)) == 1

        others = [a_series("leg", 6, name=f"killed broker {n}", body_part="LEG") for n in range(4)]
        os.kill(node.supervisor.pid("label"), signal.SIGSTOP)  # type: ignore[union-attr]
        for number, series in enumerate(others):
            node.push(saved(series, tmp_path / f"b{number}"))
        for series in others:
            node.wait_for(series[0].StudyInstanceUID, State.QUEUED)
        node.kill("broker")
        os.kill(node.supervisor.pid("label"), signal.SIGCONT)  # type: ignore[union-attr]
        for series in others:
            node.wait_for(series[0].StudyInstanceUID, State.SENT, seconds=120)
            assert len(orthanc.reports(series[0].StudyInstanceUID)) == 1


def test_a_correction_travels_the_whole_loop(node: Node, orthanc: Orthanc, tmp_path: Path) -> None:
    """Amended at the desk, sent to PACS; disputed there by a workstation, heard here."""
    images = a_series("torso", 6, name="amended")
    study = images[0].StudyInstanceUID
    node.push(saved(images, tmp_path / "images"))
    report = the_report(node, orthanc, study, tmp_path)
    organ = json.loads(node.ledger.issued.of_study(study)[0].summary)["organs"][0]
    node.command("amend", report.SOPInstanceUID, "--remove", organ, "--by", "Doe^Jane", "--organization", "Hospital")
    eventually(lambda: len(orthanc.reports(study)) == 2, 60)
    node.wait_for(study, State.SENT)
    amended = next(found for found in orthanc.reports(study) if found["VerificationFlag"] == "VERIFIED")
    path = orthanc.file(amended["SOPInstanceUID"], tmp_path / "amended.dcm")
    assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) == []
    saved([a_dispute(dcmread(path), "kidney too", codes.DCM.QualityIssue)], tmp_path / "dispute")
    node.push(tmp_path / "dispute", ae_title="REVIEW")
    eventually(lambda: "kidney too" in node.command("corrections"), 60)
    assert f"removed {organ}" in node.command("status", study)
    assert "1 corrected series" in node.command("corrections", "export", tmp_path / "export")
    node.wait_for(study, State.SENT)
    assert len(orthanc.reports(study)) == 2
