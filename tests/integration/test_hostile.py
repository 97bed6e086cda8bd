"""Hostile and broken peers: whatever they send, the receiver counts it under a name, and everybody else is served.

Every case runs against a receiver in a process of its own; afterwards a healthy peer has to be served, and memory,
threads, descriptors and half-written files have to be what they were. The long form, thousands of generated PDUs:

    python -m pytest tests/integration/test_hostile.py --hypothesis-profile=siege
"""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.association.wire import HEADER, LONGEST_COMMAND, p_data
from dicom_node.ledger.schema import refusal
from tests.hostile import (
    ABORTED,
    CT,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    REJECTED,
    VERIFICATION,
    Besieged,
    associate_rq,
    besieged,
    command,
    event_report,
    image,
    in_fragments,
    item,
)
from tests.support import eventually

#: Generated conversations: few in CI, thousands in a siege.
EXAMPLES = settings().max_examples if settings().max_examples > 100 else 40

#: MiB that the process may grow by under all of this; its buffers, caches and the allocator's fragments.
GROWTH = 48
#: Descriptors of the ledger's 15 connections, three files each: SQLite closes none while another holds its lock.
POOL = 45


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    with besieged(tmp_path_factory.mktemp("hostile")) as made:
        for _ in range(5):
            made.is_well()
        yield made


@pytest.fixture(autouse=True)
def unharmed(node: Besieged) -> Iterator[None]:
    """Whatever a case does: nothing of it stays, and a healthy peer is served meanwhile and afterwards."""
    before = (node.resident_mib(), node.threads(), node.descriptors())
    yield
    assert node.is_well() < 5
    eventually(lambda: node.threads() <= before[1], 10)
    eventually(lambda: node.descriptors() <= before[2] + POOL, 10)
    assert node.half_written() == []
    assert node.resident_mib() - before[0] < GROWTH


def counted(node: Besieged, reason: str, at_least: int = 1) -> None:
    """So many were turned away for a reason that begins so."""

    def told() -> bool:
        found = {known: count for known, count in node.reasons().items() if known.startswith(reason)}
        assert sum(found.values()) >= at_least, (reason, node.reasons())
        return True

    eventually(told, 8)


# -- before there is an association ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"", b"\1\0\0", b"\1\0\0\0\xff\xff" + b"x" * 100, associate_rq()[:-1]],
    ids=["silent", "half a header", "long and stalled", "all but one byte"],
)
def test_an_association_request_that_does_not_come(node: Besieged, said: bytes) -> None:
    with node.peer() as peer:
        kinds, seconds = peer.say(said).ended()
    assert seconds < 4
    assert kinds == [ABORTED]
    counted(node, "no association request within 1.5 s")


def test_one_byte_at_a_time(node: Besieged) -> None:
    with node.peer() as peer:
        started = time.monotonic()
        for byte in associate_rq():
            try:
                peer.say(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
        assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\1\0\xff\xff\xff\xff" + b"x" * 100, "a PDU of more than"),
        (b"\1\0\0\3\xff\x00" + b"x" * 100, "a PDU of type 0x01"),
        (b"\x99\0\0\0\0\4abcd", "a PDU of unknown type 0x99"),
        (b"GET / HTTP/1.1\r\n\r\n", "a PDU of unknown type 0x47"),
        (p_data(1, command(), command=True), "a PDU of type 0x04"),
        (bytes.fromhex("050000000004") + bytes(4), "a PDU of type 0x05"),
        (associate_rq(tuple((i, CT, (EXPLICIT,)) for i in range(200))), "an association request that cannot"),
        (associate_rq()[:74] + b"\x10\0\xff\xff" + associate_rq()[78:], "an association request that cannot"),
        (associate_rq().replace(item(0x30, CT), item(0x40, CT), 1), "an association request that cannot"),
        (associate_rq(((1, CT, ()),)), "an association request that cannot"),
    ],
    ids=["4 GiB", "250 KB", "no type", "HTTP", "data", "release", "200 contexts", "overflow", "no class", "no syntax"],
)
def test_something_else_than_an_association_request(node: Besieged, said: bytes, reason: str) -> None:
    with node.peer() as peer:
        kinds, seconds = peer.say(said).ended()
    assert seconds < 1.4
    assert set(kinds) <= {ABORTED}
    counted(node, reason)


def test_400_mb_of_association_request_are_not_read(node: Besieged) -> None:
    node.forget_peak()
    before = node.resident_mib()
    with node.peer() as peer:
        peer.say(b"\1\0\xff\xff\xff\xff")
        assert peer.pour(bytes(1 << 20), 400) < 20
    assert node.resident_mib(peak=True) - before < 16


def test_an_ae_title_of_control_characters_is_shown_without_them(node: Besieged) -> None:
    with node.peer() as peer:
        kinds, _ = peer.say(associate_rq(calling=b"\x1b[2J\n../..")).ended()
    assert set(kinds) <= {REJECTED, ABORTED}
    titles = {row.calling_ae for row in node.ledger.rows(refusal.select())}
    assert all(title.isprintable() for title in titles)


def _refusals():
    from dicom_node.ledger.schema import refusal

    return refusal.select()


def test_300_silent_connections(node: Besieged) -> None:
    before = node.resident_mib(), node.threads()
    silent = [node.peer("127.0.0.2") for _ in range(300)]
    try:
        assert node.is_well() < 5
        assert node.threads() - before[1] < 60
        assert node.resident_mib() - before[0] < 32
    finally:
        for peer in silent:
            peer.socket.close()
    counted(node, "silent; gave way to newer connections", 200)


def test_silent_connections_from_everywhere_lock_nobody_out(node: Besieged) -> None:
    silent = [node.peer(f"127.0.1.{host}") for host in range(1, 11) for _ in range(30)]
    try:
        assert node.is_well() < 5
    finally:
        for peer in silent:
            peer.socket.close()


def test_a_thousand_tiny_associations(node: Besieged) -> None:
    for number in range(5 * EXAMPLES):
        with node.peer() as peer:
            peer.say(associate_rq(calling=b"CT1" if number % 2 else b"STRANGER"))
            assert peer.hear()[0] == (0x02 if number % 2 else REJECTED)


def test_associations_that_are_held(tmp_path: Path) -> None:
    with besieged(tmp_path, associations_per_host=4, network_timeout=5.0) as node:
        held = [node.peer("127.0.0.3").associated() for _ in range(4)]
        with node.peer("127.0.0.3") as peer:
            assert peer.say(associate_rq()).hear() == (REJECTED, bytes((0, 2, 3, 2)))
        assert node.is_well() < 5
        counted(node, "associations_per_host = 4 is reached")
        assert all(peer.ended()[1] < 15 for peer in held)
        for peer in held:
            peer.socket.close()


# -- within an association -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (struct.pack(">BxLLBB", 4, 10, 5000, 1, 3) + b"abcd", "a PDV whose length"),
        (struct.pack(">BxLL", 4, 4, 0), "a P-DATA PDU that ends within the head"),
        (struct.pack(">BxLLBB", 4, 6, 1, 1, 3), "a PDV whose length"),
        (b"\4\0\xff\xff\xff\xff" + b"x" * 100, "a PDU of more than"),
        (b"\x99\0\0\0\0\4abcd", "a PDU of unknown type"),
        (p_data(1, b"\xde\xad" * 150, command=True), "a command set that is none"),
        (p_data(3, command(field=0x7777, data_set=False), command=True), "a message that cannot be understood"),
        (p_data(1, event_report(1), command=True), "a request 0x0100 in a context for storage"),
        (p_data(99, command(), command=True), "a presentation context that was not accepted"),
        (p_data(1, b"x" * 1000, command=False), "a data set without a command"),
        (p_data(1, command(), command=True) * 2, "a command within a data set"),
        (p_data(1, command(), command=True) + p_data(3, b"x", command=False), "a message in two presentation contexts"),
        (p_data(1, bytes(LONGEST_COMMAND), command=True, last=False) * 2, "a command set of more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_that_breaks_the_protocol(node: Besieged, said: bytes, reason: str) -> None:
    with node.peer() as peer:
        kinds, seconds = peer.associated().say(said).ended()
    assert seconds < 2
    assert set(kinds) <= {ABORTED}
    counted(node, reason)


def test_a_pdu_that_is_begun_and_not_finished(node: Besieged) -> None:
    with node.peer() as peer:
        assert peer.associated().say(struct.pack(">BxL", 4, 1000) + b"x" * 10).ended()[1] < 6
    counted(node, "a PDU that was begun and not finished in time")


def test_a_pdu_of_one_byte_a_second_is_not_waited_for(node: Besieged) -> None:
    with node.peer() as peer:
        peer.associated().say(struct.pack(">BxL", 4, 1000))
        started = time.monotonic()
        while time.monotonic() - started < 10:
            try:
                peer.say(b"x")
            except OSError:
                break
            time.sleep(0.3)
        assert time.monotonic() - started < 6


def test_an_object_that_stops_halfway(node: Besieged) -> None:
    with node.peer() as peer:
        peer.associated().say(p_data(1, command(), command=True) + p_data(1, bytes(1000), command=False, last=False))
        assert peer.ended()[1] < 6
    counted(node, "the connection ended within an object")


@pytest.mark.parametrize("end", ["0000 61 00", "0000 02 ff", "0000 00 00"], ids=["source", "reason", "well-formed"])
def test_an_abort_that_means_nothing_is_one_all_the_same(node: Besieged, end: str) -> None:
    with node.peer() as peer:
        assert peer.associated().say(bytes.fromhex(f"0700 00000004 {end}")).ended()[1] < 2
    assert "Traceback" not in (node.folder / "receive.log").read_text(errors="replace")


def test_a_64_mb_pdu_is_not_read(node: Besieged) -> None:
    node.forget_peak()
    before = node.resident_mib()
    with node.peer() as peer:
        peer.associated().say(p_data(1, command(), command=True) + HEADER.pack(4, 64 << 20))
        assert peer.pour(bytes(1 << 20), 64) < 20
    assert node.resident_mib(peak=True) - before < 16


def test_an_endless_object_is_cut_off_at_the_limit(node: Besieged) -> None:
    node.forget_peak()
    before = node.resident_mib()
    with node.peer() as peer:
        peer.associated().say(p_data(1, command(), command=True))
        assert peer.pour(p_data(1, bytes(16000), command=False, last=False) * 64, 60) < 30
    counted(node, "an object of more than instance_limit_mib = 8")
    assert node.resident_mib(peak=True) - before < 16


def test_an_endless_message_of_another_service_is_cut_off(node: Besieged) -> None:
    with node.peer() as peer:
        peer.associated().say(p_data(5, command(field=0x0130), command=True))
        assert peer.pour(p_data(5, bytes(16000), command=False, last=False) * 64, 60) < 40
    counted(node, "a message of more than 16777216 bytes")


def test_a_flood_of_requests_that_waits_for_no_answer(node: Besieged) -> None:
    before, peak, done = node.threads(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], node.threads())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with node.peer() as peer:
            peer.associated()
            peer.pour(b"".join(p_data(5, event_report(i), command=True) for i in range(500)), 1)
            peer.ended()
    finally:
        done.set()
        watcher.join()
    assert peak[0] - before < 20


def test_resets_in_the_middle_of_objects(node: Besieged) -> None:
    for number in range(20):
        peer = node.peer().associated()
        peer.say(p_data(1, command(instance=b"1.9.%d" % number), command=True))
        peer.say(p_data(1, bytes(16000), command=False, last=False) * 8).reset()
    eventually(lambda: node.half_written() == [], 10)


# -- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [b"../../x", b"1.2/3", b"..", b"1." * 150, b"", b"1.2.\xff"])
def test_a_uid_that_is_none_becomes_no_path(node: Besieged, uid: bytes) -> None:
    with node.peer() as peer:
        assert peer.associated().store(image(uid), command(instance=uid)) == 0xC000
    assert not [path for path in node.folder.rglob("*.dcm") if not path.is_relative_to(node.settings.home / "spool")]
    counted(node, "the command's SOP instance UID is")


@pytest.mark.parametrize(
    ("asked", "data_set", "status", "reason"),
    [
        (command(instance=b"1.2.3.5"), image(b"1.2.3.4"), 0xA900, "the command announces 1.2.3.5"),
        (command(), image(b"../../x"), 0xC000, "SOPInstanceUID is '../../x': not of digits and points only"),
        (command(), image().replace(CT, CT[:-1] + b"4"), 0xA900, "the command announces class"),
        (command(instance=None), image(), 0xC000, "the command's SOP instance UID is ''"),
        (command(), os.urandom(100_000), 0xC000, ""),
        (command(), b"", 0xC000, "StudyInstanceUID is absent"),
    ],
    ids=["other instance", "path in the data set", "other class", "no instance", "noise", "empty"],
)
def test_an_object_that_is_not_what_it_says(
    node: Besieged, asked: bytes, data_set: bytes, status: int, reason: str
) -> None:
    with node.peer() as peer:
        assert peer.associated().store(data_set, asked) == status
    counted(node, reason)


def test_a_request_to_store_without_a_data_set_is_answered(node: Besieged) -> None:
    with node.peer() as peer:
        peer.associated().say(p_data(1, command(data_set=False), command=True))
        assert peer.status() == 0xC000


def test_a_cut_object_is_kept_as_it_came(node: Besieged) -> None:
    """Its pixel data claim 4 GiB and have 100 bytes: the labeler says so; refused, it would be lost."""
    cut = image(b"1.2.7.1", 0)[:-4] + struct.pack("<L", 0xFFFFFFFE) + b"x" * 100
    with node.peer() as peer:
        assert peer.associated().store(cut, command(instance=b"1.2.7.1")) == 0
    found = node.ledger.instance("1.2.7.1")
    assert found is not None
    assert found.path.read_bytes().endswith(cut)


def test_a_deflate_bomb_stays_folded(node: Besieged) -> None:
    node.forget_peak()
    before = node.resident_mib()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflate.compress(image(b"1.2.7.2", 0)[:-12] + struct.pack("<HH2sxxL", 0x7FE0, 0x10, b"OB", 1 << 29))
    bomb += b"".join(deflate.compress(bytes(1 << 20)) for _ in range(512)) + deflate.flush()
    with node.peer() as peer:
        peer.associated(((1, CT, (DEFLATED,)), (3, VERIFICATION, (IMPLICIT,))))
        assert peer.store(bomb, command(instance=b"1.2.7.2")) == 0
    assert node.resident_mib(peak=True) - before < 16


def test_20000_nested_sequences(node: Besieged) -> None:
    opened = struct.pack("<HH2sxxL", 0x08, 0x1140, b"SQ", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    for number, data_set in enumerate((opened * 20_000 + image(), image(b"1.2.7.3")[:-1008] + opened * 20_000)):
        with node.peer() as peer:
            status = peer.associated().store(data_set, command(instance=b"1.2.7.3"))
        assert status == (0xC000, 0)[number]


# -- generated -------------------------------------------------------------------------------------------------------

_sentences = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.builds(lambda kind, body: HEADER.pack(kind, len(body)) + body, st.integers(0, 9), st.binary(max_size=300)),
        st.builds(
            lambda context_id, data, is_command, last: p_data(context_id, data, command=is_command, last=last),
            st.sampled_from([1, 3, 5, 255]),
            st.one_of(st.binary(max_size=300), st.just(command()), st.just(image()), st.just(event_report(1))),
            st.booleans(),
            st.booleans(),
        ),
        st.just(in_fragments(image(), size=50)),
        st.just(p_data(3, command(field=0x30, data_set=False), command=True)),
        st.just(associate_rq()),
    ),
    max_size=6,
)


@pytest.mark.timeout(1800)
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sentences=_sentences, damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3))
def test_whatever_is_said_it_ends(node: Besieged, sentences: list[bytes], damage: list[tuple[int, int]]) -> None:
    """Any mixture of PDUs, whole and broken, after a request that may be damaged: the peer is answered or cut off."""
    request = bytearray(associate_rq())
    for place, value in damage:
        request[place % len(request)] = value
    with node.peer(timeout=10) as peer:
        try:
            peer.say(bytes(request))
            for said in sentences:
                peer.say(said)
        except OSError:
            return
        peer.ended()


def test_the_siege_left_the_node_as_it_was(node: Besieged) -> None:
    assert "Traceback" not in (node.folder / "receive.log").read_text(errors="replace")
    assert node.resident_mib() < 300
