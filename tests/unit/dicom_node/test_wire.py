"""PDUs and command sets: what is whole is read as pynetdicom reads it, what is not is cut off; nothing else happens."""

import contextlib
import random
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import AE, __version__
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.pdu import A_ASSOCIATE_RJ, P_DATA_TF
from pynetdicom.transport import AssociationSocket

from dicom_node.association.provider import OVERRIDDEN, BufferedSocket
from dicom_node.association.wire import (
    HEADER,
    LONGEST_PDU,
    Answer,
    fragments,
    p_data,
    parse_command,
    pdu_length,
    rejection,
)
from dicom_node.errors import CutOff
from tests.hostile import command


@given(st.integers(0, 255), st.binary(max_size=500), st.booleans(), st.booleans())
def test_a_pdu_is_read_as_it_was_written(context_id: int, data: bytes, is_command: bool, last: bool):
    raw = p_data(context_id, data, command=is_command, last=last)
    assert pdu_length(raw) == (4, len(raw) - 6)
    (found,) = fragments(memoryview(raw)[6:])
    assert (found.context_id, found.is_command, found.is_last, bytes(found.data)) == (
        context_id,
        is_command,
        last,
        data,
    )


@given(st.lists(st.tuples(st.sampled_from([1, 3, 255]), st.binary(min_size=1, max_size=50)), max_size=5))
def test_fragments_are_those_that_pynetdicom_finds(values: list[tuple[int, bytes]]):
    body = b"".join(p_data(context_id, data, command=False)[6:] for context_id, data in values)
    pdu = P_DATA_TF()
    pdu.decode(HEADER.pack(4, len(body)) + body)
    theirs = [(item.context_id, bytes(item.presentation_data_value[1:])) for item in pdu.presentation_data_value_items]
    assert [(f.context_id, bytes(f.data)) for f in fragments(memoryview(body))] == theirs


@given(st.binary(max_size=200))
def test_noise_is_cut_off_or_read_within_its_bounds(raw: bytes):
    with contextlib.suppress(CutOff):
        assert sum(len(found.data) + 6 for found in fragments(memoryview(raw))) == len(raw)
    with contextlib.suppress(CutOff):
        assert sum(len(value) + 8 for value in parse_command(raw).elements.values()) <= len(raw)


@pytest.mark.parametrize("header", [HEADER.pack(0, 4), HEADER.pack(8, 4), HEADER.pack(4, LONGEST_PDU - 5)])
def test_no_other_pdu_is_read(header: bytes):
    with pytest.raises(CutOff):
        pdu_length(header)


def test_an_answer_is_what_pynetdicom_understands():
    asked = parse_command(command(instance=b"1.2.3", message_id=7))
    answer = C_STORE_RSP()
    said = Answer(0xA700, "no room\\" + "x" * 99)
    answer.encoded_command_set.write(asked.stored(said))
    pdu = P_DATA_TF()
    pdu.decode(p_data(5, asked.stored(said), command=True))
    message = C_STORE_RSP()
    message.decode_msg(pdu.to_primitive())
    primitive = message.message_to_primitive()
    assert (primitive.Status, primitive.MessageIDBeingRespondedTo) == (0xA700, 7)
    assert (primitive.AffectedSOPInstanceUID, message.context_id) == ("1.2.3", 5)
    assert primitive.ErrorComment == "no room" + "x" * 57
    assert message.command_set.get("ErrorComment") == primitive.ErrorComment


def test_success_has_no_comment_and_a_short_one_is_even():
    assert b"\x02\x09" not in parse_command(command()).stored(Answer(0))
    assert Answer(0xC000, "odd").words == b"odd "


def test_a_rejection_is_what_pynetdicom_understands():
    pdu = A_ASSOCIATE_RJ()
    pdu.decode(rejection(2, 3, 2))
    assert (pdu.result, pdu.source, pdu.reason_diagnostic) == (2, 3, 2)


def test_what_is_begun_moves_to_the_front_of_the_buffer_unharmed():
    """A MiB in pieces that do not end where the buffer does."""
    sent = random.Random(5).randbytes(1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as far:
        near, _ = server.accept()
        with near:
            reader = BufferedSocket(Association(AE("X"), MODE_ACCEPTOR), near, b"first")
            threading.Thread(target=far.sendall, args=[sent], daemon=True).start()
            assert reader.recv(5) == b"first"
            assert b"".join(bytes(reader.take(1 << 17 | 1)) for _ in range(7)) == sent[: 7 * (1 << 17 | 1)]
            assert reader.recv((1 << 17) - 7) == sent[7 * (1 << 17 | 1) :]


def test_the_names_of_pynetdicom_that_we_replace_are_there():
    """An update of pynetdicom that moves one of them would let our bounds or the fast path silently go."""
    association = Association(AE("X"), MODE_ACCEPTOR)
    owners = {
        "dul": association.dul,
        "dul rounds": association.dul,
        "dul queues": association.dul,
        "dimse": association.dimse,
        "association": association,
        "socket": AssociationSocket,
    }
    gone = [
        f"{owner}.{name}"
        for owner, names in OVERRIDDEN.items()
        for name in names
        if not hasattr(owners[owner], name) and name not in _set_by_instances
    ]
    assert not gone, (
        f"pynetdicom {__version__} has no {', '.join(gone)} any more: look over dicom_node/association/provider.py, "
        "or run with fast_path = false on a version that has them"
    )


#: Set when a socket is made, which needs a connection.
_set_by_instances = {"_is_connected"}
