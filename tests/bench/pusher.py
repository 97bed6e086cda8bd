"""A scanner that limits nothing: one association, whose images are one encoded image under ever new UIDs.

    python -m tests.bench.pusher PORT ae|raw TEMPLATE NUMBER COUNT [CERTIFICATE KEY CA]

It associates, prints "ready", waits for a line, pushes, and prints the seconds that it took and its own processor
seconds. `raw` sends bare bytes with their length in front instead and waits for one byte: the bound of every receiver.
No DICOM library is in the way; PS3.8 Section 9.3 and PS3.7 Section 9.3.1 are all that it takes.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CALLING, CALLED = "BENCH", "SCP"
#: Stands in the template where study and instance get their UIDs; as long as what replaces it.
STUDY_UID, INSTANCE_UID = "1.2.826.0.1.3680043.8.498.1000000000", "1.2.826.0.1.3680043.8.498.2000000000"
_SYNTAX = "1.2.840.10008.1.2.1"
#: Status 0x0000 as a C-STORE response encodes it.
STORED = bytes.fromhex("0000 0009 02000000 0000")
#: What goes out for one image.
Body = list[bytes | memoryview]
#: Buffers that one system call takes.
_AT_ONCE = 1000


def pushed(connection: socket.socket, bodies: Iterator[Body], answer: bytes, size: int) -> None:
    """Send each body and await its answer, of so many bytes, in which `answer` must stand."""
    secure = isinstance(connection, ssl.SSLSocket)
    for body in bodies:
        if secure:
            connection.sendall(b"".join(body))
        else:
            _send(connection, body)
        told = _read(connection, size) if size else _pdu(connection)
        if answer not in told:
            raise SystemExit(f"refused: {told.hex()}")


def _send(connection: socket.socket, body: Sequence[bytes | memoryview]) -> None:
    for first in range(0, len(body), _AT_ONCE):
        part = [memoryview(buffer) for buffer in body[first : first + _AT_ONCE]]
        while part:
            sent = connection.sendmsg(part)
            while part and sent >= len(part[0]):
                sent -= len(part.pop(0))
            if part:
                part[0] = part[0][sent:]


def _read(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = connection.recv(count - len(found))
        if not more:
            raise SystemExit("the server hung up")
        found += more
    return found


def _pdu(connection: socket.socket) -> bytes:
    head = _read(connection, 6)
    return head + _read(connection, struct.unpack(">I", head[2:])[0])


def _item(kind: int, value: bytes, head: str = ">BBH") -> bytes:
    return struct.pack(head, kind, 0, len(value)) + value


def associated(connection: socket.socket, sop_class: str, called: str = CALLED, calling: str = CALLING) -> int:
    """Associate with one presentation context; the longest PDU that the peer takes, bytes."""
    context = b"\1\0\0\0" + _item(0x30, sop_class.encode()) + _item(0x40, _SYNTAX.encode())
    user = struct.pack(">BBHI", 0x51, 0, 4, 131072) + _item(0x52, b"1.2.826.0.1.3680043.8.498.9")
    items = _item(0x10, b"1.2.840.10008.3.1.1.1") + _item(0x20, context) + _item(0x50, user)
    names = called.ljust(16).encode() + calling.ljust(16).encode()
    connection.sendall(_item(1, b"\0\1\0\0" + names + bytes(32) + items, ">BBI"))
    answer = _pdu(connection)
    if answer[0] != 2:
        raise SystemExit(f"no association: {answer.hex()}")
    place = answer.index(b"\x51\0\0\4") + 4
    return min(int.from_bytes(answer[place : place + 4], "big") or 1 << 20, 1 << 20)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _even(uid: bytes) -> bytes:
    return uid + b"\0" * (len(uid) % 2)


def stores(sop_class: str, wanted: Iterator[tuple[bytes, bytes]], longest: int) -> Iterator[Body]:
    """The P-DATA of one C-STORE request per instance (PS3.7 Table 9.3-1)."""
    step = longest - 6
    for number, (instance, image) in enumerate(wanted):
        command = _element(0x0002, _even(sop_class.encode())) + _element(0x0100, b"\1\0")
        command += _element(0x0110, struct.pack("<H", number % 65535 + 1)) + _element(0x0700, b"\0\0")
        command += _element(0x0800, b"\1\0") + _element(0x1000, _even(instance))
        command = _element(0x0000, struct.pack("<I", len(command))) + command
        head = struct.pack(">BBIIBB", 4, 0, len(command) + 6, len(command) + 2, 1, 3)
        body: Body = [head, command]
        view = memoryview(image)
        for first in range(0, len(view), step):
            part = view[first : first + step]
            last = 2 if first + step >= len(view) else 0
            body += [struct.pack(">BBIIBB", 4, 0, len(part) + 6, len(part) + 2, 1, last), part]
        yield body


def images(template: bytes, number: int, count: int) -> Iterator[tuple[bytes, bytes]]:
    """(SOP Instance UID, data set) of so many images of the study with this number."""
    study = _numbered(STUDY_UID, number)
    for each in range(count):
        instance = _numbered(INSTANCE_UID, number * 1_000_000 + each)
        yield instance, template.replace(STUDY_UID.encode(), study).replace(INSTANCE_UID.encode(), instance)


def _numbered(uid: str, number: int) -> bytes:
    return f"{uid[:-9]}{number:09}".encode()


def main() -> None:
    port, kind, path, number, count, *secrets = sys.argv[1:]
    connection = socket.create_connection(("127.0.0.1", int(port)), 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if secrets:
        context = ssl.create_default_context(cafile=secrets[2])
        context.load_cert_chain(secrets[0], secrets[1])
        connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
    sop_class, template = Path(path).read_bytes().split(b"\n", 1)
    wanted = images(template, int(number), int(count))
    if kind == "ae":
        bodies = stores(sop_class.decode(), wanted, associated(connection, sop_class.decode()))
        answer, size = STORED, 0
    else:
        bodies = ([struct.pack(">I", len(image)), image] for _, image in wanted)
        answer, size = b"x", 1
    print("ready", flush=True)
    sys.stdin.readline()
    started, used = time.perf_counter(), time.process_time()
    pushed(connection, bodies, answer, size)
    print(time.perf_counter() - started, time.process_time() - used, flush=True)
    if kind == "ae":
        connection.sendall(_item(5, bytes(4), ">BBI"))
        _pdu(connection)


if __name__ == "__main__":
    main()
