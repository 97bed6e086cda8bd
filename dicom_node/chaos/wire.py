"""TCP connections that can be silenced, as by a pulled cable, or torn, as by a restarting firewall."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress

_CHUNK = 1 << 16


class Wire:
    """Passes connections on to a port of this machine; made in the loop of `Wires`."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._torn = False
        self._ends: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def silence(self) -> None:
        """Nothing goes through; connections stay open, new ones are never answered."""
        self._flowing.clear()

    def tear(self) -> None:
        """Every connection is reset, and every new one."""
        self._torn = True
        for end in self._ends:
            _reset(end)

    def mend(self) -> None:
        self._torn = False
        self._flowing.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._torn:
            _reset(writer)
            return
        await self._flowing.wait()
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        self._ends |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            self._ends -= {writer, back}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        with suppress(OSError):
            sink.close()
            await sink.wait_closed()


def _reset(end: asyncio.StreamWriter) -> None:
    """Close with RST: nothing that is under way arrives any more."""
    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()


class Wires:
    """All wires, in an event loop of their own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._wires: dict[str, Wire] = {}
        threading.Thread(target=self._loop.run_forever, name="wires", daemon=True).start()

    def lay(self, name: str, target: int) -> int:
        """A wire to a port; returns the port at its near end."""

        async def laid() -> Wire:
            wire = Wire(target)
            await wire.open()
            return wire

        self._wires[name] = asyncio.run_coroutine_threadsafe(laid(), self._loop).result(10)
        return self._wires[name].port

    def silence(self, name: str) -> None:
        self._loop.call_soon_threadsafe(self._wires[name].silence)

    def tear(self, name: str) -> None:
        self._loop.call_soon_threadsafe(self._wires[name].tear)

    def mend(self, name: str) -> None:
        self._loop.call_soon_threadsafe(self._wires[name].mend)
