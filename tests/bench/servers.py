"""What the receiver is measured against, one process each; before they answer, file and name are on the disk.

    python -m tests.bench.servers raw|encoded|dataset PORT FOLDER [CERTIFICATE KEY CA]

`raw` is the bound: bytes from a socket to a synchronised file, and nothing of DICOM. `encoded` and `dataset` are the
two handlers that pynetdicom's documentation shows.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

#: Bytes that one read of the bound may bring.
_CHUNK = 1 << 20


def _durable(folder: Path, name: str, data: bytes | memoryview) -> None:
    part = folder / f"{name}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, data)
    os.fdatasync(descriptor)
    os.close(descriptor)
    os.rename(part, folder / f"{name}.dcm")
    _synchronise(folder)


def _synchronise(folder: Path) -> None:
    """So that names survive, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def raw(port: int, folder: Path) -> None:
    """A thread per connection; the kernel does the work."""
    server = socket.create_server(("127.0.0.1", port))
    while True:
        connection, (_, number) = server.accept()
        threading.Thread(target=_take, args=(connection, folder, number), daemon=True).start()


def _take(connection: socket.socket, folder: Path, number: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count, buffer = 0, memoryview(bytearray(_CHUNK))
    while head := connection.recv(4, socket.MSG_WAITALL):
        size, got = struct.unpack(">I", head)[0], 0
        while got < size:
            got += connection.recv_into(buffer[got:size])
        _durable(folder, f"{number}-{count}", buffer[:size])
        count += 1
        connection.sendall(b"x")


def pynetdicom(port: int, folder: Path, kind: str, secrets: list[str]) -> None:
    """pynetdicom as its documentation has it, with the logging of every element off."""
    from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
    from pynetdicom.sop_class import Verification

    def encoded(event: evt.Event) -> int:
        _durable(folder, str(event.request.AffectedSOPInstanceUID), event.encoded_dataset())
        return 0x0000

    def dataset(event: evt.Event) -> int:
        data_set = event.dataset
        data_set.file_meta = event.file_meta
        path = folder / f"{data_set.SOPInstanceUID}.dcm"
        data_set.save_as(path, enforce_file_format=True)
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.close(descriptor)
        _synchronise(folder)
        return 0x0000

    _config.LOG_HANDLER_LEVEL = "none"
    entity = AE("SCP")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(Verification)
    entity.maximum_associations = 64
    handlers: dict[str, Callable[[evt.Event], int]] = {"encoded": encoded, "dataset": dataset}
    context = None
    if secrets:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=secrets[2])
        context.load_cert_chain(secrets[0], secrets[1])
        context.verify_mode = ssl.CERT_REQUIRED
    entity.start_server(
        ("127.0.0.1", port), block=True, evt_handlers=[(evt.EVT_C_STORE, handlers[kind])], ssl_context=context
    )


def main() -> None:
    kind, port, folder, *secrets = sys.argv[1:]
    if kind == "raw":
        raw(int(port), Path(folder))
    else:
        pynetdicom(int(port), Path(folder), kind, secrets)


if __name__ == "__main__":
    main()
