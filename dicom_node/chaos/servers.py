"""Broker, database and PACS: real processes that can be killed and come back where they were."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dicom_node.errors import ConfigurationError, Retry
from dicom_node.processes.node import embedded_broker
from dicom_node.processes.supervise import die_with

#: Where Debian keeps PostgreSQL's programs, which it leaves out of PATH.
_POSTGRES = "/usr/lib/postgresql"
_PATIENCE = 30.0


class Server:
    """One process, started again under the same command.

    Attributes:
        port: where it listens, 0 where it does not.
        user: who runs it; None: we.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        port: int = 0,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.command, self.log, self.port, self.user = name, list(command), log, port, user
        self.environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it, and again where it ends at once: what its predecessor held may not be free yet.

        Raises:
            Retry: it does not listen after half a minute.
        """
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if not self.alive:
                self._spawn()
            if not wait or self.listens:
                return
            time.sleep(0.1)
        raise Retry(f"{self.name} does not listen on port {self.port}; its log is {self.log}")

    def _spawn(self) -> None:
        as_user: dict[str, Any] = {}
        if self.user:
            entry = pwd.getpwnam(self.user)
            as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
                **as_user,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def listens(self) -> bool:
        if not self.port:
            return self.alive
        with socket.socket() as probe:
            return self.alive and probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def signal(self, number: int) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def run(self) -> int:
        """Start it and wait for its end; its exit code."""
        self._spawn()
        assert self._process is not None
        return self._process.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process:
            self._process.wait()

    def end(self, seconds: float = 30.0) -> int | None:
        """SIGTERM, and SIGKILL after `seconds`; its exit code, None where it had to be killed."""
        if self._process is None:
            return 0
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def broker(folder: Path) -> Server:
    """A Redis that keeps nothing: the system's, else the embedded one."""
    program, port = shutil.which("redis-server"), free_port()
    if program is None:
        embedded, url = embedded_broker(folder)
        return Server("broker", embedded.command, folder / "broker.log", int(url.rsplit(":", 1)[1].split("/")[0]))
    listening = ["--port", str(port), "--bind", "127.0.0.1"]
    nothing = ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    return Server("broker", [program, *listening, *nothing], folder / "broker.log", port)


def pacs(folder: Path, logs: Path) -> Server:
    """The demo's archive as a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "dicom_node.chaos.pacs", str(folder), str(port)]
    return Server("pacs", command, logs / "pacs.log", port)


def has_database() -> bool:
    """Are PostgreSQL's programs here, and its driver?"""
    with suppress(ImportError):
        import psycopg

        return psycopg is not None and _program("initdb") is not None
    return False


def database(folder: Path, logs: Path) -> Server:
    """A PostgreSQL cluster of our own, run by an unprivileged user as it demands.

    Raises:
        ConfigurationError: its programs are not here, or it cannot be made.
    """
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        raise ConfigurationError("no PostgreSQL on this machine (initdb, postgres): use --ledger sqlite")
    user = _unprivileged()
    if user:
        shutil.chown(folder, user)
    port = free_port()
    trust = [initdb, "--pgdata", str(folder / "data"), "--username", "chaos", "--auth", "trust", "--no-sync"]
    making = Server("initdb", trust, logs / "database.log", user=user)
    if making.run() != 0:
        raise ConfigurationError(f"PostgreSQL's initdb failed; its words are in {making.log}")
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    command = [server, "-D", str(folder / "data"), *(f"--{name}={value}" for name, value in options.items())]
    return Server("database", command, logs / "database.log", port, user)


def _program(name: str) -> str | None:
    places = [os.environ.get("PATH", ""), *(str(p) for p in sorted(Path(_POSTGRES).glob("*/bin"), reverse=True))]
    return shutil.which(name, path=os.pathsep.join(reversed(places)))


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)
