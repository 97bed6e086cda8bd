"""Everything that plays: scanners' wire, node, broker, database, PACS; brought up, kept up, taken down."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

from dicom_node.chaos import servers
from dicom_node.chaos.disk import Disk
from dicom_node.chaos.orthanc import Orthanc
from dicom_node.chaos.servers import Server
from dicom_node.chaos.struck import FOLDER_VARIABLE, MODULE, program_of
from dicom_node.chaos.wire import Wires
from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.settings import CONFIG_VARIABLE, Settings, load_settings

#: Room of the node's disk and its reserve, MiB.
DISK, RESERVE = 256, 16
LEASE_SECONDS = 4.0
#: Settings of the site that a rehearsal goes by: what labels, and on what.
_KEPT = frozenset({"DICOM_NODE_BUNDLE", "DICOM_NODE_DEVICE"})

_CONFIG = """ae_title = "ANATOMY"
bind = "127.0.0.1"
port = {node}
home = "{home}"
broker = "redis://127.0.0.1:{broker}/0"
{ledger}
quiet_seconds = 1.5
sweep_seconds = 0.2
ring_again_seconds = 2.0
lease_seconds = {lease}
longest_pause = 2.0
network_timeout = 15.0
reserve_mib = {reserve}
purge_margin_mib = 0
# A study may lose more workers to a rehearsal than to a life.
attempts = 50

[[peers]]
name = "scanner"
ae_title = "SCANNER"
host = "127.0.0.1"
may = ["push"]

[[peers]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs}
may = ["reports"]
"""


def scratch(home: Path | None) -> Path:
    """A folder to rehearse in: a new one, or the given one where it holds nothing.

    Raises:
        ConfigurationError: it holds something.
    """
    if home is None:
        return Path(tempfile.mkdtemp(prefix="dicom-node-chaos-"))
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise ConfigurationError(f"{home} is not an empty folder; a rehearsal destroys, so it wants a home of its own")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home.resolve()


def forget_site(environment: MutableMapping[str, str]) -> None:
    """Take out every setting of the site, which would overrule ours, its home first; bundle and device are kept."""
    for name in [name for name in environment if name.startswith("DICOM_NODE_") and name not in _KEPT]:
        del environment[name]


class World:
    """All processes of a rehearsal below one folder."""

    def __init__(self, folder: Path, *, postgresql: bool, orthanc: bool = False) -> None:
        self.folder, self.logs = folder, folder / "logs"
        for name in ("logs", "pacs", "scans", "temporary", "moments/armed"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.disk = Disk(folder / "node", DISK)
        self.clock_offset = 0.0
        self._database_folder = Path(tempfile.mkdtemp(prefix="dicom-node-chaos-db-")) if postgresql else None
        self.broker = servers.broker(self.logs)
        self.pacs = Orthanc(folder / "pacs", self.logs) if orthanc else servers.pacs(folder / "pacs", self.logs)
        self.database = servers.database(self._database_folder, self.logs) if self._database_folder else None
        self.wires = Wires()
        self._write_config()
        environment = {
            FOLDER_VARIABLE: str(folder / "moments"),
            CONFIG_VARIABLE: str(self.config),
            "TMPDIR": str(folder / "temporary"),
        }
        second = ("worker", "--queues", "label", "--hostname", "label2@%h")
        node = (sys.executable, "-m", MODULE)
        self.up = Server("up", (*node, "up"), self.logs / "node.log", environment=environment)
        self.second = Server("label2", (*node, *second), self.logs / "node.log", environment=environment)
        #: Servers that are down on purpose.
        self.down: set[str] = set()

    def _write_config(self) -> None:
        node = servers.free_port()
        self.scanner_port = self.wires.lay("scanner", node)
        ledger = ""
        if self.database:
            url = "postgresql://chaos@127.0.0.1:{}/postgres"
            ledger = f'ledger = "{url.format(self.wires.lay("database", self.database.port))}"'
            self.ledger_url = url.format(self.database.port)
        else:
            self.ledger_url = f"sqlite:///{self.folder / 'node' / 'ledger.sqlite'}"
        self.config = self.folder / "dicom-node.toml"
        self.config.write_text(
            _CONFIG.format(
                node=node,
                home=self.folder / "node",
                broker=self.wires.lay("broker", self.broker.port),
                pacs=self.wires.lay("pacs", self.pacs.port),
                ledger=ledger,
                lease=LEASE_SECONDS,
                reserve=RESERVE,
            )
        )
        self.settings: Settings = load_settings(self.config)

    @property
    def servers(self) -> dict[str, Server]:
        """What we started ourselves, by name, in the order in which it starts."""
        outside = [self.broker, *([self.database] if self.database else []), self.pacs]
        return {server.name: server for server in (*outside, self.up, self.second)}

    @property
    def pacs_kind(self) -> str:
        return "orthanc" if isinstance(self.pacs, Orthanc) else "archive"

    def open(self) -> Ledger:
        """Start everything; the ledger, seen without the wires between."""
        for server in self.servers.values():
            server.start()
        return Ledger(self.ledger_url)

    def keep(self) -> None:
        """Start again what has ended and is not down on purpose, as the hospital's systemd would."""
        for name, server in self.servers.items():
            if not server.alive and name not in self.down:
                server.start(wait=False)

    def pids(self, name: str) -> list[int]:
        """Processes of that name: a server of ours, or the node's programs of that name below `up`."""
        if name in self.servers:
            return [self.servers[name].pid] if self.servers[name].alive else []
        return [pid for pid, program in self.programs() if program == name]

    def programs(self) -> list[tuple[int, str]]:
        """The node's programs that `up` runs now, and the second worker."""
        found = [(pid, program_of(_command(pid))) for pid in _children(self.up.pid)] if self.up.alive else []
        return [*found, *([(self.second.pid, "label2")] if self.second.alive else [])]

    def signal(self, name: str, number: int) -> int:
        """Send a signal to all processes of that name; how many there were."""
        sent = 0
        for pid in self.pids(name):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                sent += 1
        return sent

    def set_clock(self, offset: float) -> None:
        """Seconds by which the node's wall clock is off from now on."""
        self.clock_offset = offset
        new = self.folder / "moments" / "clock.new"
        new.write_text(str(offset))
        new.rename(self.folder / "moments" / "clock")

    def fetch(self) -> None:
        """Bring what the PACS keeps into our folder, where it does not lie there already."""
        if isinstance(self.pacs, Orthanc):
            self.pacs.fetch(self.folder / "pacs")

    def close(self) -> dict[str, int | None]:
        """End everything, the node first; exit codes of the node's processes, None where SIGTERM was not enough."""
        for name in ("receive", "watch", "label", "deliver", "label2", "up"):
            self.signal(name, signal.SIGCONT)
        codes = {server.name: server.end() for server in (self.up, self.second)}
        for server in (self.pacs, self.broker, *([self.database] if self.database else [])):
            server.kill()
        return codes

    def sweep_up(self) -> None:
        """Remove what lies outside the folder."""
        if self._database_folder:
            shutil.rmtree(self._database_folder, ignore_errors=True)

    def left_behind(self) -> list[str]:
        """Processes that still know the folder and temporary files, after all should have ended."""
        deadline = time.monotonic() + 10
        while (running := list(_knowing(self.folder))) and time.monotonic() < deadline:
            time.sleep(0.1)
        files = (self.folder / "temporary").rglob("*")
        found = [f"process still running: {command}" for command in running]
        return found + [f"temporary file {path.relative_to(self.folder)}" for path in files if not path.is_dir()]


def _children(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(after_name[1]) == pid and after_name[0] != "Z":
                    yield int(entry.name)


def _command(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def _knowing(folder: Path) -> Iterator[str]:
    """Command lines of processes that were started with our folder in their environment."""
    wanted = f"{FOLDER_VARIABLE}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes():
                    yield " ".join(_command(int(entry.name)))
