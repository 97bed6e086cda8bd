"""Durable files: whole or not at all, once, and nowhere else."""

import errno
import fcntl
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from blake3 import blake3

from dicom_node.errors import NotUnderstood, OutOfResources
from dicom_node.spool import GROUP, Spool
from dicom_node.spool.blocks import locked
from dicom_node.spool.dataset import file_header, read_spooled
from dicom_node.spool.seal import UNFINISHED, seal_of
from tests.factories import a_series

SYNTAX = "1.2.840.10008.1.2.1"
HEADER = file_header("1.2.840.10008.5.1.4.1.1.2", "1.2.3", SYNTAX, "CT1")


def bytes_of(image) -> bytes:
    from io import BytesIO

    from pydicom import dcmwrite

    buffer = BytesIO()
    dcmwrite(buffer, image, enforce_file_format=True)
    raw = buffer.getvalue()
    return raw[144 + int.from_bytes(raw[140:144], "little") :]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def stored(spool: Spool, body: bytes = b"pixels", uid: str = "1.2.3"):
    return spool.store("1.2", uid, file_header("1.2.840.10008.5.1.4.1.1.2", uid, SYNTAX, "CT1"), body)


def test_bytes_are_kept_as_received(spool: Spool):
    found = stored(spool, b"exactly these")
    assert found.path.read_bytes().endswith(b"exactly these")
    assert found.path == spool.images / "1.2" / "1.2.3.dcm"
    assert found.digest == Spool.digest_of(found.path)


def test_the_same_bytes_are_written_once_and_other_bytes_are_kept_beside(spool: Spool):
    first, again, other = stored(spool), stored(spool), stored(spool, b"other pixels")
    assert again == first
    assert (other.conflict, first.conflict) == (True, False)
    assert other.path != first.path
    assert stored(spool, b"other pixels") == other
    assert sorted(spool.files()) == sorted([first.path, other.path])


def test_files_and_folders_are_for_their_owner_only(spool: Spool):
    found = stored(spool)
    assert found.path.stat().st_mode & 0o777 == 0o600
    assert found.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("uid", ["../../x", "1/2", "", "1..2", "a", "1" * 65, "1.2\x00"])
def test_nothing_but_uids_becomes_a_path(spool: Spool, uid: str):
    with pytest.raises(ValueError, match="only UIDs"):
        spool.store("1.2", uid, b"", b"")
    with pytest.raises(ValueError, match="only UIDs"):
        spool.store(uid, "1.2", b"", b"")


def test_below_the_reserve_nothing_is_taken_and_nothing_left(tmp_path: Path):
    spool = Spool(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(OutOfResources, match="reserve_mib"):
        stored(spool)
    assert list(spool.files()) == []
    assert list(spool.incoming.iterdir()) == []


def test_a_spool_that_is_away_takes_nothing_and_says_so(spool: Spool):
    spool.images.rename(spool.images.with_name("elsewhere"))
    with pytest.raises(OutOfResources, match="No such file"):
        stored(spool)
    spool.images.with_name("elsewhere").rename(spool.images)
    assert stored(spool).path.exists()


def test_a_failing_disk_leaves_no_half_file(spool: Spool, monkeypatch: pytest.MonkeyPatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OutOfResources, match="No space left"):
        stored(spool)
    assert list(spool.files()) == []
    assert list(spool.incoming.iterdir()) == []


def order_of_calls(spool: Spool, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> list[tuple[str, str]]:
    """What the disk is asked to do for images of these sizes, and with which file."""
    calls: list[tuple[str, str]] = []

    def told(name: str, real: Any, *arguments: Any, **others: Any) -> Any:
        first = arguments[0]
        path = Path(f"/proc/self/fd/{first}" if isinstance(first, int) else first)
        path = path.readlink() if path.is_symlink() else path
        calls.append((name, "part" if path.suffix == ".part" else path.name))
        return real(*arguments, **others)

    with monkeypatch.context() as patch:
        for name in ("pwrite", "fdatasync", "link", "fsync"):
            patch.setattr(os, name, partial(told, name, getattr(os, name)))
        for number, size in enumerate(sizes):
            stored(spool, bytes(size), uid=f"1.2.{number}")
    return calls


def test_an_image_is_written_under_its_name_and_both_are_on_the_disk_before_the_answer(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One synchronisation of all: what has a journal commits once."""
    assert order_of_calls(spool, monkeypatch, [300_000, 300_000]) == [
        ("fsync", "spool"),
        *[("pwrite", "1.2.0.dcm")] * 2,
        ("fdatasync", "1.2.0.dcm"),
        ("fsync", "1.2"),
        *[("pwrite", "1.2.1.dcm")] * 2,
        ("fdatasync", "1.2.1.dcm"),
        ("fsync", "1.2"),
    ]


def test_a_long_image_is_begun_elsewhere_and_has_its_seal_before_its_name(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = order_of_calls(spool, monkeypatch, [100, (1 << 20) + 5000])[3:]
    begun = [("pwrite", "part")] * 4
    assert calls == [("fsync", "1.2"), *begun, ("link", "part"), ("fdatasync", "part"), ("fsync", "1.2")]


def test_the_first_images_of_a_study_may_come_at_once(spool: Spool) -> None:
    def store(study: int, image: int) -> Path:
        header = file_header("1.2.840.10008.5.1.4.1.1.2", f"1.2.{image}", SYNTAX, "CT1")
        return spool.store(f"1.2.{study}", f"1.2.{image}", header, b"pixels").path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(store, *zip(*product(range(40), range(8)), strict=True)))
    assert sorted(paths) == sorted(spool.files())
    assert len(paths) == 320


def test_half_written_files_are_cleared_at_start(spool: Spool):
    (spool.incoming / "x.part").write_bytes(b"half")
    assert spool.clear_incoming() == 1
    assert list(spool.incoming.iterdir()) == []


def test_over_nfs_a_half_written_file_is_cleared_too(spool: Spool, monkeypatch: pytest.MonkeyPatch):
    """There an exclusive lock wants a file that is open for writing (flock(2))."""

    def over_nfs(file: BinaryIO, _: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    (spool.incoming / "x.part").write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", over_nfs)
    assert spool.clear_incoming() == 1


def test_a_spooled_file_tells_its_own_identity(spool: Spool):
    image = a_series("leg", 1)[0]
    found = spool.store(
        image.StudyInstanceUID,
        image.SOPInstanceUID,
        file_header(image.SOPClassUID, image.SOPInstanceUID, SYNTAX, "CT1"),
        bytes_of(image),
    )
    identity, syntax, calling = read_spooled(found.path)
    assert (identity.sop_instance_uid, identity.series_uid) == (image.SOPInstanceUID, image.SeriesInstanceUID)
    assert (syntax, calling) == (SYNTAX, "CT1")
    found.path.write_bytes(b"junk")
    with pytest.raises(NotUnderstood):
        read_spooled(found.path)


def test_pieces_make_the_same_file_as_the_whole(spool: Spool):
    header = file_header("1.2.840.10008.5.1.4.1.1.2", "1.2.3", SYNTAX, "CT1")
    with spool.begin(header) as part:
        for piece in (b"one ", b"", memoryview(b"two "), b"three"):
            part.write(piece)
        with part.data_set() as data_set:
            assert data_set.read() == part.head == b"one two three"
        found = part.commit("1.2", "1.2.3")
    assert found == stored(spool, b"one two three")


def test_an_object_that_is_given_up_leaves_nothing(spool: Spool):
    with spool.begin(HEADER) as part:
        part.write(bytes(2 << 20))
        assert len(list(spool.incoming.iterdir())) == 1
    assert list(spool.incoming.iterdir()) == []


def test_of_two_that_write_one_uid_at_once_both_are_kept(spool: Spool):
    with spool.begin(HEADER) as first, spool.begin(HEADER) as second:
        first.write(b"one")
        second.write(b"two")
        places = {first.commit("1.2", "1.2.3"), second.commit("1.2", "1.2.3")}
    assert sorted(place.conflict for place in places) == [False, True]
    assert len(list(spool.files())) == 2


def test_what_a_living_process_writes_is_not_cleared(spool: Spool, tmp_path: Path):
    with spool.begin(HEADER) as part:
        part.write(bytes(2 << 20))
        assert Spool(tmp_path).clear_incoming() == 0
        part.write(b"goes on")
        assert part.commit("1.2", "1.2.3").path.exists()


def test_in_a_group_an_object_is_there_at_once_and_durable_when_the_spool_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    spool = Spool(tmp_path, durability="group")
    places = [stored(spool, b"%d" % number, f"1.2.{number}") for number in range(200)]
    assert all(place.path.exists() for place in places)
    assert 200 - GROUP - 2 <= len(synced) <= 200
    spool.close()
    assert len(synced) == 200


def test_a_disk_that_fails_behind_our_back_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    spool = Spool(tmp_path, durability="group")
    monkeypatch.setattr(os, "fdatasync", fail)
    stored(spool)
    spool.close()
    with pytest.raises(OutOfResources, match="was acknowledged and may be lost"):
        stored(spool, uid="1.2.4")


def test_a_disk_that_removes_nothing_leaves_nothing_open(spool: Spool, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    open_before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(Path, "unlink", refuse)
    with spool.begin(HEADER) as part:
        part.write(bytes(2 << 20))
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (1 << 20) - 144, 1 << 20, (3 << 20) + 5])
def test_a_file_of_any_size_is_whole(spool: Spool, size: int):
    data = bytes(range(256)) * (size // 256 + 1)
    header = file_header("1.2.840.10008.5.1.4.1.1.2", "1.2.3", SYNTAX, "CT1")
    found = spool.store("1.2", "1.2.3", header, data[:size])
    assert found.path.read_bytes() == seal_of(found.digest) + header[128:] + data[:size]
    assert found.digest == Spool.digest_of(found.path)


# -- files that were never whole -------------------------------------------------------------------------------------


def damaged(place: Path, kind: str) -> None:
    """As a kill or a power cut may leave a file that was named and not yet synchronised."""
    whole = place.read_bytes()
    torn = {
        "created": b"",
        "blocks without bytes": bytes(len(whole)),
        "cut short": whole[: len(whole) // 2],
        "a hole": whole[:4096] + bytes(4096) + whole[8192:],
        "no end": whole[:-1] + b"\0",
        "unsealed": UNFINISHED + whole[128:],
    }
    place.write_bytes(torn[kind])


TORN = ["created", "blocks without bytes", "cut short", "a hole", "no end", "unsealed"]
BODY = bytes(range(1, 256)) * 100


@pytest.mark.parametrize("kind", TORN)
def test_what_was_never_whole_gives_its_name_up_where_nobody_has_entered_it(spool: Spool, kind: str) -> None:
    found = stored(spool, BODY)
    assert spool.judge(found.path) == found
    damaged(found.path, kind)
    left = found.path.read_bytes()
    assert spool.judge(found.path) is None
    assert not found.path.exists()
    assert spool.judge(found.path) is None
    assert [path.read_bytes() for path in found.path.parent.iterdir()] == ([left] if left else [])
    assert list(spool.files()) == []


@pytest.mark.parametrize("kind", TORN)
def test_what_was_never_whole_gives_way_to_the_same_image_sent_again(spool: Spool, kind: str) -> None:
    found = stored(spool, BODY)
    damaged(found.path, kind)
    again = stored(spool, BODY)
    assert (again.path, again.digest, again.conflict) == (found.path, found.digest, False)
    assert again.path.read_bytes().endswith(BODY)
    assert list(spool.files()) == [found.path]


def test_what_somebody_else_put_there_or_a_former_version_wrote_stays(spool: Spool) -> None:
    found = stored(spool, BODY)
    found.path.write_bytes(bytes(128) + found.path.read_bytes()[128:])
    assert spool.judge(found.path) == stored(spool, BODY)
    assert stored(spool, BODY).path == found.path
    assert stored(spool, b"other").conflict
    strange = found.path.with_name("9.9.dcm")
    strange.write_bytes(b"a note")
    assert spool.judge(strange) is not None
    assert strange.exists()


def test_what_a_living_receiver_writes_is_neither_judged_nor_waited_for_without_end(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.spool.spool._PATIENCE", 0.05)
    found = stored(spool, BODY)
    with locked(found.path):
        assert spool.judge(found.path) is None
        with pytest.raises(OutOfResources, match="another association is writing it"):
            stored(spool, BODY)
    assert stored(spool, BODY).path == found.path


@pytest.mark.parametrize("size", [20_000, (1 << 20) + 20_000])
@pytest.mark.parametrize("call", ["pwrite", "link", "fdatasync", "fsync"])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_at_any_call_leaves_a_whole_image_or_none(tmp_path: Path, size: int, call: str, before: bool) -> None:
    body = BODY * (size // len(BODY) + 1)
    spool = Spool(tmp_path)
    stored(spool, b"another of the study", uid="1.2.9")
    child = os.fork()
    if not child:
        real = getattr(os, call)

        def struck(*arguments: Any, **others: Any) -> None:
            if not before:
                real(*arguments, **others)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, call, struck)
        stored(spool, body)
        os._exit(0)
    os.waitpid(child, 0)
    spool = Spool(tmp_path)
    spool.clear_incoming()
    for path in list(spool.files()):
        if spool.judge(path) is not None:
            assert Spool.digest_of(path) in (blake3(body).hexdigest(), blake3(b"another of the study").hexdigest())
    assert list(spool.incoming.iterdir()) == []
    again = stored(spool, body)
    assert (again.path.name, again.conflict) == ("1.2.3.dcm", False)
    assert again.path.read_bytes().endswith(body)
    assert len(list(spool.files())) == 2
