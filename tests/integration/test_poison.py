"""Images that crash, stall or burst a real decoder: the worker lives, the study is reported without them."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from dicom_node.desk.status import overview, story
from dicom_node.study import State
from labeler.dicom import read_file
from labeler.sandbox import Bounds, Sandbox
from labeler.slices import Skip
from tests.factories import a_series
from tests.parts import Bench, told

SIDE = 160


def poisoned(syntax: str, **bytes_at: int) -> Callable[[Dataset], None]:
    """Compress, then set bytes of the codestream: `at6=32` writes 32 at offset 6."""

    def change(image: Dataset) -> None:
        image.compress(syntax, generate_instance_uid=False)
        stream = bytearray(next(generate_frames(image.PixelData, number_of_frames=1)))
        for place, value in bytes_at.items():
            stream[int(place[2:])] = value
        image.PixelData = encapsulate([bytes(stream)])

    return change


def declared_huge(image: Dataset) -> None:
    image.compress(JPEG2000Lossless, generate_instance_uid=False)
    image.Rows = image.Columns = 65535
    image.NumberOfFrames = 3


#: Sample precision 32: an assertion of the decoder ends its process.
ABORTS = poisoned(JPEGLSLossless, at6=32)
#: 2,097,248 columns in a stream of 9 KB: the decoder looks for 21,847 tiles that are not there.
STALLS = poisoned(JPEG2000Lossless, at9=32)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(SIDE, 1, Bounds(seconds=60.0, mib=512, tries=2))
    yield made
    made.close()


def saved(change: Callable[[Dataset], None], folder: Path) -> Path:
    image = a_series("torso", 3, name="poison")[1]
    change(image)
    image.save_as(folder / "poison.dcm", enforce_file_format=True)
    return folder / "poison.dcm"


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        (ABORTS, Skip.CRASHED, "SIGABRT, 2 times"),
        (poisoned(JPEGLSLossless, at10=0), Skip.CRASHED, "SIGSEGV, 2 times"),
        (declared_huge, Skip.TOO_LARGE, "it would unpack to 24575 MiB, 512 MiB are allowed"),
    ],
)
def test_what_ends_a_decoder_costs_one_image(
    sandbox: Sandbox, tmp_path: Path, change: Callable[[Dataset], None], reason: Skip, detail: str
) -> None:
    read = sandbox.read(saved(change, tmp_path))
    assert read.skipped is not None
    assert (read.skipped.reason, read.skipped.detail) == (reason, detail)
    after = sandbox.read(saved(lambda _: None, tmp_path))
    assert len(after.planes) == 1


def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    sandbox = Sandbox(SIDE, 1, Bounds(seconds=0.5, tries=1))
    read = sandbox.read(saved(STALLS, tmp_path))
    assert read.skipped is not None
    assert (read.skipped.reason, read.skipped.detail) == (Skip.TOO_SLOW, "longer than 0.5 s for one frame, 1 times")


def test_a_deflated_bomb_meets_the_bound_on_memory(sandbox: Sandbox, tmp_path: Path) -> None:
    path = saved(lambda image: setattr(image.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian), tmp_path)
    whole = path.read_bytes()
    offset = 144 + int.from_bytes(whole[140:144], "little")
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    inside = squeeze.compress(zlib.decompress(whole[offset:], -zlib.MAX_WBITS)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    zeros = squeeze.compress(bytes(1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(whole[:offset] + inside + 128 * zeros + squeeze.flush())
    assert path.stat().st_size < 16 << 20
    read = sandbox.read(path)
    assert read.skipped is not None
    assert read.skipped.reason == Skip.TOO_LARGE


def test_a_child_that_is_killed_is_replaced_and_the_image_read(sandbox: Sandbox, tmp_path: Path) -> None:
    path = saved(lambda _: None, tmp_path)
    first = sandbox.read(path)
    child = sandbox._idle.get()
    assert child is not None
    child.process.kill()
    sandbox._idle.put(child)
    again = sandbox.read(path)
    assert again.planes[0].pixels.tobytes() == first.planes[0].pixels.tobytes()
    assert first.planes[0].pixels.tobytes() == read_file(path, SIDE).planes[0].pixels.tobytes()


def test_the_children_end_with_their_worker(tmp_path: Path) -> None:
    path = saved(lambda _: None, tmp_path)
    sandbox = Sandbox(SIDE, 1)
    sandbox.read(path)
    child = sandbox._idle.get()
    assert child is not None
    child.wire.close()  # what the kernel does for a worker that is killed
    began = time.monotonic()
    assert child.process.wait(10) == 0
    assert time.monotonic() - began < 10


def test_a_study_goes_on_without_its_poison_and_status_says_why(bench: Bench) -> None:
    images = a_series("torso", 6, name="poisoned study")
    ABORTS(images[2])
    uid = bench.take(images)
    assert bench.label(uid) == State.REPORTED
    row = bench.ledger.study(uid)
    assert row is not None
    assert row.attempts == 1
    assert bench.reasons() == {"its decoder crashed": 1}
    assert "SIGABRT, 3 times" in told(story(bench.ledger, uid))
    assert "its decoder crashed" in told(overview(bench.ledger))


def test_a_study_of_nothing_but_poison_is_unlabelled(bench: Bench) -> None:
    images = a_series("torso", 2, name="all poison")
    for image in images:
        declared_huge(image)
    uid = bench.take(images)
    assert bench.label(uid) == State.UNLABELLED
    assert bench.reasons() == {"it unpacks to more than may be": 2}
