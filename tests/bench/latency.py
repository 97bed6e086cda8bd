"""From the last image to the report at the archive: labelled as it arrives, against labelled once it is complete.

    python -m tests.bench.latency                    # 50, 300 and 1500 slices, plain and JPEG 2000: half an hour
    python -m tests.bench.latency --quick            # 20 and 60 slices, a short quiet time: two minutes

Two whole nodes run side by side, alike but for `planes_mib = 0` in one; each study is pushed to the one and, when that
has reported, to the other, by DCMTK over a real association, with a real archive behind. What is printed is a Markdown
table of seconds beyond the quiet time, which is the same for both. No threshold: this machine's own numbers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from statistics import median

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless

from dicom_node.demo.archive import Archive
from dicom_node.demo.phantoms import paint, torso, with_noise
from dicom_node.demo.scanner import image_series
from dicom_node.study import Kind, State
from dicom_node.uids import derived
from tests.node import Node

SIDE, FIELD, HEIGHT, DISTINCT = 512, 400.0, 380.0, 50
SYNTAXES = {"plain": ExplicitVRLittleEndian, "JPEG 2000": JPEG2000Lossless}
MODES = {"complete": 0, "arriving": 4096}


def drawn(syntax: UID, count: int) -> list[Dataset]:
    """So many distinct slices of a CT torso of 512 x 512."""
    heights = np.linspace(0, HEIGHT, count)
    volume = with_noise(paint(torso(), FIELD, SIDE, heights, "CT"), "CT", 1)
    images = list(image_series("latency", volume, "CT", "CHEST", FIELD / SIDE, heights.tolist(), "bench").images)
    if syntax.is_compressed:
        for image in images:
            image.compress(syntax, generate_instance_uid=False)
    return images


def a_study(slices: int, name: str, of: list[Dataset]) -> Iterator[Dataset]:
    """So many thin slices; neighbours share their pixels where there are more than the distinct ones."""
    for number in range(slices):
        image = deepcopy(of[number * len(of) // slices])
        image.StudyInstanceUID, image.SeriesInstanceUID = derived("study", name), derived("series", name)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = derived("image", name, str(number))
        image.InstanceNumber, image.ImagePositionPatient[2] = number + 1, HEIGHT * number / slices
        yield image


def latency(node: Node, archive: Archive, files: list[Path], study_uid: str, syntax: UID) -> float:
    """Push a study; seconds from its last image, less the quiet time, to its report in the archive."""
    options = ("-xv",) if syntax.is_compressed else ("-xe",)
    for start in range(0, len(files), 250):
        node.push(*files[start : start + 250], options=options)
    node.wait_for(study_uid, State.SENT, 1800)
    row, written = node.ledger.study(study_uid), node.ledger.issued.of_study(study_uid)
    assert row is not None
    (report,) = [one for one in written if one.kind == Kind.REPORT]
    arrived = (archive.folder / f"{report.sop_instance_uid}.dcm").stat().st_mtime
    return arrived - row.last_at - node.settings.quiet_of(row.peer)


def measured(options: argparse.Namespace, home: Path) -> dict[tuple[str, int, str], list[float]]:
    found: dict[tuple[str, int, str], list[float]] = {}
    slices = {name: drawn(SYNTAXES[name], min(DISTINCT, max(options.slices))) for name in options.syntaxes}
    with ExitStack() as stack:
        nodes = {}
        for mode, mib in MODES.items():
            archive = stack.enter_context(Archive(home / mode / "archive", "PACS"))
            node = Node(home / mode, archive.port, "PACS", quiet_seconds=options.quiet, planes_mib=mib)
            nodes[mode] = stack.enter_context(node.running()), archive
        warm_up = [(name, 3, -1) for name in options.syntaxes]
        cases = [(name, n, r) for r in range(options.rounds) for name in options.syntaxes for n in options.slices]
        for name, count, round_ in warm_up + cases:
            syntax, folder, title = SYNTAXES[name], home / "images", f"{name} {count} {round_}"
            folder.mkdir(exist_ok=True)
            files = []
            for number, image in enumerate(a_study(count, title, slices[name])):
                files.append(folder / f"{number:05d}.dcm")
                image.save_as(files[-1], enforce_file_format=True)
            for mode, (node, archive) in nodes.items():
                seconds = latency(node, archive, files, derived("study", title), syntax)
                if round_ >= 0:
                    found.setdefault((name, count, mode), []).append(seconds)
                    print(f"{time.strftime('%H:%M:%S')} {title}, {mode}: {seconds:.1f} s", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[50, 300, 1500])
    parser.add_argument("--quiet", type=float, default=60.0, help="quiet_seconds of the nodes")
    parser.add_argument("--syntaxes", nargs="+", choices=SYNTAXES, default=list(SYNTAXES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.slices, options.quiet = [20, 60], 12.0
    with tempfile.TemporaryDirectory() as home:
        found = measured(options, Path(home))
    print(f"\nSeconds from the last image to the report at the archive, beyond {options.quiet:g} s of quiet time:\n")
    print(
        "| transfer syntax | slices | labelled once complete | as it arrives | ratio |\n| --- | --- | --- | --- | --- |"
    )
    for name in options.syntaxes:
        for count in options.slices:
            after, ahead = (median(found[name, count, mode]) for mode in MODES)
            print(f"| {name} | {count} | {after:.1f} | {ahead:.1f} | {after / ahead:.1f} |")


if __name__ == "__main__":
    main()
