"""A whole node of real processes for tests: its own home, broker, ports and settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_node.ledger import Ledger
from dicom_node.processes.node import supervised
from dicom_node.processes.supervise import Supervisor
from dicom_node.settings import Settings, load_settings
from dicom_node.study import State
from tests.support import eventually, free_port, tool


class Node:
    """A node that runs as `dicom-node up` would run it."""

    def __init__(self, home: Path, pacs_port: int, pacs_ae: str, **settings: object) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.config = home / "dicom-node.toml"
        common: dict[str, object] = {
            "ae_title": "ANATOMY",
            "bind": "127.0.0.1",
            "port": free_port(),
            "home": str(home / "data"),
            "quiet_seconds": 2.0,
            "sweep_seconds": 0.2,
            "ring_again_seconds": 2.0,
            "lease_seconds": 4.0,
            "longest_pause": 2.0,
            "reserve_mib": 16,
        }
        lines = [f"{key} = {_toml(value)}" for key, value in {**common, **settings}.items()]
        self.config.write_text("\n".join(lines) + _PEERS.format(port=pacs_port, ae=pacs_ae))
        self.settings: Settings = load_settings(self.config)
        self.supervisor: Supervisor | None = None

    @contextmanager
    def running(self) -> Iterator[Node]:
        with (self.home / "node.log").open("ab") as output:
            self.supervisor = supervised(self.settings, self.config, output)
            self.supervisor.start()
            try:
                eventually(lambda: tool("echoscu", "-aet", "SCANNER", "-aec", "ANATOMY", "127.0.0.1", self.port), 30)
                yield self
            finally:
                self.supervisor.stop()

    @property
    def port(self) -> int:
        return self.settings.port

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_url)

    def push(self, *paths: Path, options: tuple[str, ...] = (), ae_title: str = "SCANNER") -> None:
        """DCMTK's storescu plays the scanner, or whoever has that AE title."""
        files = [p for path in paths for p in (sorted(path.rglob("*.dcm")) if path.is_dir() else [path])]
        tool("storescu", "-aet", ae_title, "-aec", "ANATOMY", *options, "127.0.0.1", self.port, *files)

    def command(self, *arguments: object) -> str:
        """What `dicom-node` prints with this node's settings."""
        command = [sys.executable, "-m", "dicom_node", "-c", self.config, *arguments]
        environment = {**os.environ, "COLUMNS": "300"}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill(self, name: str) -> None:
        """kill -9 one process; the supervisor is asked to bring it back by `revive`."""
        assert self.supervisor is not None
        os.kill(self.supervisor.pid(name), signal.SIGKILL)

    def revive(self) -> None:
        assert self.supervisor is not None
        self.supervisor.revive()

    def wait_for(self, study_uid: str, state: State, seconds: float = 90.0) -> None:
        def reached() -> bool:
            self.revive()
            row = self.ledger.study(study_uid)
            assert row is not None, "not received"
            assert row.state == state, f"{row.state}: {row.reason}"
            return True

        eventually(reached, seconds)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


_PEERS = """

[[peers]]
name = "scanner"
ae_title = "SCANNER"
host = "127.0.0.1"
may = ["push"]

[[peers]]
name = "review"
ae_title = "REVIEW"
host = "127.0.0.1"
may = ["audit"]

[[peers]]
name = "pacs"
ae_title = "{ae}"
host = "127.0.0.1"
port = {port}
may = ["reports"]
"""
