"""A peer of raw sockets that says what it likes, and a watch over the process that has to bear it."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_node.association.wire import HEADER, encode_command, p_data
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import refusal
from dicom_node.settings import Settings, load_settings
from tests.support import eventually, free_port, running

CT, IMPLICIT, EXPLICIT, DEFLATED, VERIFICATION, COMMITMENT = (
    b"1.2.840.10008.5.1.4.1.1.2",
    b"1.2.840.10008.1.2",
    b"1.2.840.10008.1.2.1",
    b"1.2.840.10008.1.2.1.99",
    b"1.2.840.10008.1.1",
    b"1.2.840.10008.1.20.1",
)
REJECTED, ACCEPTED, ANSWERED, RELEASED, ABORTED = 0x03, 0x02, 0x04, 0x06, 0x07
RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")

Context = tuple[int, bytes, tuple[bytes, ...]]
USUAL: tuple[Context, ...] = ((1, CT, (EXPLICIT,)), (3, VERIFICATION, (IMPLICIT,)), (5, COMMITMENT, (IMPLICIT,)))


# -- bytes -----------------------------------------------------------------------------------------------------------


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def associate_rq(contexts: tuple[Context, ...] = USUAL, calling: bytes = b"CT1", called: bytes = b"ANATOMY") -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2); presentation contexts as (id, abstract syntax, transfer syntaxes)."""
    asked = b"".join(
        item(0x20, bytes((number % 256, 0, 0, 0)) + item(0x30, abstract) + b"".join(item(0x40, s) for s in syntaxes))
        for number, abstract, syntaxes in contexts
    )
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4.5") + item(0x55, b"HOSTILE"))
    titles = called.ljust(16)[:16] + calling.ljust(16)[:16]
    body = struct.pack(">Hxx", 1) + titles + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1") + asked + user
    return HEADER.pack(1, len(body)) + body


def command(field: int = 1, instance: bytes | None = b"1.2.3.4", data_set: bool = True, message_id: int = 1) -> bytes:
    elements = {
        0x0002: _even(CT),
        0x0100: struct.pack("<H", field),
        0x0110: struct.pack("<H", message_id),
        0x0700: b"\0\0",
        0x0800: b"\1\0" if data_set else b"\1\1",
    }
    if instance is not None:
        elements[0x1000] = _even(instance)
    return encode_command(elements)


def event_report(message_id: int, sop_class: bytes = COMMITMENT) -> bytes:
    """An N-EVENT-REPORT without a data set."""
    named = {0x0002: _even(sop_class), 0x0100: b"\0\1", 0x0110: struct.pack("<H", message_id), 0x0800: b"\1\1"}
    return encode_command({**named, 0x1000: _even(b"1.2.3"), 0x1002: b"\1\0"})


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value = _even(value)
    long = vr in (b"OB", b"OW", b"SQ", b"UN")
    return struct.pack("<HH2s", group, number, vr) + struct.pack("<xxL" if long else "<H", len(value)) + value


def image(uid: bytes = b"1.2.3.4", pixels: int = 1000) -> bytes:
    """A data set in Explicit VR Little Endian that can be filed."""
    return (
        element(0x08, 0x16, b"UI", CT)
        + element(0x08, 0x18, b"UI", uid)
        + element(0x08, 0x60, b"CS", b"CT")
        + element(0x20, 0x0D, b"UI", b"1.2.3")
        + element(0x20, 0x0E, b"UI", b"1.2.3.1")
        + element(0x7FE0, 0x10, b"OW", bytes(pixels))
    )


def in_fragments(data_set: bytes, context_id: int = 1, size: int = 16000) -> bytes:
    pieces = [data_set[start : start + size] for start in range(0, max(len(data_set), 1), size)]
    return b"".join(p_data(context_id, p, command=False, last=i == len(pieces)) for i, p in enumerate(pieces, start=1))


def _even(value: bytes) -> bytes:
    return value + b"\0" * (len(value) % 2)


# -- the peer --------------------------------------------------------------------------------------------------------


class RawPeer:
    """One connection, with nothing between its user and the wire."""

    def __init__(self, port: int, source: str = "127.0.0.1", timeout: float = 15.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout, source_address=(source, 0))

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, data: bytes) -> RawPeer:
        self.socket.sendall(data)
        return self

    def associated(self, contexts: tuple[Context, ...] = USUAL, calling: bytes = b"CT1") -> RawPeer:
        self.say(associate_rq(contexts, calling))
        kind, body = self.hear()
        assert kind == ACCEPTED, (kind, body)
        return self

    def hear(self) -> tuple[int, bytes]:
        """The next PDU: its type and body."""
        kind, length = HEADER.unpack(self._exactly(HEADER.size))
        return kind, self._exactly(length)

    def store(self, data_set: bytes, asked: bytes, context_id: int = 1) -> int:
        """The status of one C-STORE."""
        self.say(p_data(context_id, asked, command=True) + in_fragments(data_set, context_id))
        return self.status()

    def status(self) -> int:
        kind, body = self.hear()
        assert kind == ANSWERED, f"PDU {kind}"
        place = body.index(b"\0\0\0\x09\2\0\0\0") + 8
        return int.from_bytes(body[place : place + 2], "little")

    def ended(self) -> tuple[list[int], float]:
        """Types of the PDUs that still came before the connection ended, and seconds until then."""
        started, kinds = time.monotonic(), []
        try:
            while True:
                kinds.append(self.hear()[0])
        except TimeoutError:
            raise AssertionError(f"still open after {time.monotonic() - started:.0f} s; heard {kinds}") from None
        except OSError:
            return kinds, time.monotonic() - started

    def pour(self, data: bytes, times: int) -> int:
        """Send again and again; how often until the other side had enough."""
        for count in range(times):
            try:
                self.socket.sendall(data)
            except OSError:
                return count
        return times

    def reset(self) -> None:
        """End the connection as a crashing machine does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (more := self.socket.recv(count - len(data))):
                raise ConnectionResetError
            data += more
        return data


# -- the besieged ----------------------------------------------------------------------------------------------------


class Besieged:
    """A receiver in a process of its own, and what it costs."""

    def __init__(self, folder: Path, pid: int, settings: Settings) -> None:
        self.folder, self.pid, self.settings = folder, pid, settings
        self.ledger = Ledger(settings.ledger_url)
        self._objects = 0

    @property
    def port(self) -> int:
        return self.settings.port

    def peer(self, source: str = "127.0.0.1", timeout: float = 15.0) -> RawPeer:
        return RawPeer(self.port, source, timeout)

    def reasons(self) -> dict[str, int]:
        """How often each reason was counted."""
        found: dict[str, int] = {}
        for row in self.ledger.rows(refusal.select()):
            found[row.reason] = found.get(row.reason, 0) + row.count
        return found

    def is_well(self) -> float:
        """A healthy peer comes, stores an object and goes; seconds that it took."""
        self._objects += 1
        uid, started = f"1.2.9.{self._objects}".encode(), time.monotonic()
        with self.peer(timeout=5.0) as peer:
            assert peer.associated().store(image(uid), command(instance=uid)) == 0
            assert peer.say(RELEASE_RQ).hear()[0] == RELEASED
        return time.monotonic() - started

    def resident_mib(self, peak: bool = False) -> int:
        return self._of_process("VmHWM" if peak else "VmRSS") >> 10

    def threads(self) -> int:
        return self._of_process("Threads")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def half_written(self) -> list[Path]:
        return list((self.settings.home / "spool" / "incoming").iterdir())

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _of_process(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


@contextmanager
def besieged(folder: Path, **settings: object) -> Iterator[Besieged]:
    """A receiver with small bounds, which knows a scanner CT1 at any address."""
    common: dict[str, object] = {
        "bind": "127.0.0.1",
        "port": free_port(),
        "home": str(folder / "home"),
        "reserve_mib": 1,
        "network_timeout": 2.0,
        "request_timeout": 1.5,
        "instance_limit_mib": 8,
    }
    config = folder / "node.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in {**common, **settings}.items()]
    peer = '[[peers]]\nname = "ct1"\nae_title = "CT1"\nhost = "127.0.0.0/8"\n'
    config.write_text("\n".join(lines) + "\n" + peer)
    command = [sys.executable, "-m", "dicom_node", "-c", str(config), "receive"]
    with running(command, folder / "receive.log", {"PYTHONPATH": str(Path.cwd())}) as process:
        made = Besieged(folder, process.pid, load_settings(config))
        eventually(lambda: made.is_well() > 0, 30)
        yield made
        made.ledger.engine.dispose()
