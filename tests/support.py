"""Real servers and processes for tests, waiting by retrying, and DICOM series in one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

T = TypeVar("T")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def free_port() -> int:
    """A port that nobody listens at; of those that run tests at the same time, each draws from a share of its own."""
    shares = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port // 2 % shares == share % shares:  # Linux gives odd ones only
            return port


def listens(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


def eventually(check: Callable[[], T], seconds: float = 60.0, every: float = 0.2) -> T:
    """The first truthy value of `check`; an assertion error of its last failure when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = check()
            assert value, f"still {value!r}"
            return value
        except (AssertionError, OSError, subprocess.SubprocessError):
            if time.monotonic() > deadline:
                raise
            time.sleep(every)


def needs(*programs: str) -> None:
    """A missing server skips at the desk and fails in CI."""
    absent = [name for name in programs if shutil.which(name, path=_path()) is None]
    if absent:
        missing(", ".join(absent))


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"not installed: {what}")
    pytest.skip(f"not installed: {what}")


def program(name: str) -> str:
    """Where a server lies."""
    needs(name)
    return str(shutil.which(name, path=_path()))


def _path() -> str:
    """The system's programs before any Python environment's: pynetdicom installs an `echoscu` and `storescu` too."""
    own = str(Path(sys.executable).parent)
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", own]
    return os.pathsep.join(sorted(places, key=lambda place: (Path(place).parent / "pyvenv.cfg").exists()))


def tool(name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command-line tool and return what it printed."""
    command = [program(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=120, errors="replace")


@contextmanager
def running(
    command: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that ends with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def at_once(work: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
    """What this function of a test module returns in so many processes, all started at the same moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    with context.Pool(len(calls)) as pool:
        return pool.starmap(work, calls, chunksize=1)


class Orthanc:
    """Debian's Orthanc as the hospital's PACS, asked by REST."""

    def __init__(self, folder: Path, plugins: Sequence[str] = (), **options: object) -> None:
        """`options` are Orthanc's own, over the usual ones."""
        self.folder, self.ae_title, self.plugins, self.options = folder, "ORTHANC", plugins, options
        self.dicom_port, self.http_port = free_port(), free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @contextmanager
    def started(self) -> Iterator[Orthanc]:
        needs("Orthanc")
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "orthanc.json"
        config.write_text(
            json.dumps(
                {
                    "Name": "test PACS",
                    "StorageDirectory": str(self.folder / "storage"),
                    "IndexDirectory": str(self.folder / "storage"),
                    "DicomAet": self.ae_title,
                    "DicomPort": self.dicom_port,
                    "HttpPort": self.http_port,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomAlwaysAllowStore": True,
                    "Plugins": list(self.plugins),
                    **self.options,
                }
            )
        )
        log = self.folder / "orthanc.log"
        with running([program("Orthanc"), str(config)], log, {"TCP_NODELAY": "1"}) as process:
            self.pid = process.pid
            eventually(lambda: self.get("/system"), 30)
            yield self

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def knows(self, name: str, ae_title: str, port: int) -> None:
        """Let it open associations to an application of ours on this machine."""
        self._send("PUT", f"/modalities/{name}", {"AET": ae_title, "Host": "127.0.0.1", "Port": port})

    def takes(self, image: Any, path: Path) -> None:
        """Put an object into it, past every association."""
        image.save_as(path, enforce_file_format=True)
        url = f"{self.url}/instances"
        urllib.request.urlopen(urllib.request.Request(url, path.read_bytes()), timeout=10).close()

    def asks_commitment(self, name: str, objects: list[tuple[str, str]]) -> str:
        """Ask a known application to commit to (SOP class, SOP instance) pairs; returns the path of the transaction."""
        asked = self._send("POST", f"/modalities/{name}/storage-commitment", {"DicomInstances": objects})
        return str(asked["Path"])

    def _send(self, method: str, path: str, body: Any) -> Any:
        url, data = f"{self.url}{path}", json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=10) as answer:
            return json.loads(answer.read() or "{}")

    def delete_series(self, **query: str) -> None:
        for series in self.find("Series", **query):
            url = f"{self.url}/series/{series['ID']}"
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()

    def find(self, level: str, **query: str) -> list[dict[str, Any]]:
        """Resources with all their main tags, as `/tools/find` tells."""
        found: list[dict[str, Any]] = self._send(
            "POST", "/tools/find", {"Level": level, "Expand": True, "Query": query}
        )
        return found

    def reports(self, study_uid: str) -> list[dict[str, Any]]:
        """SR instances of a study: their simplified tags."""
        series = self.find("Series", StudyInstanceUID=study_uid, Modality="SR")
        return [self.get(f"/instances/{uid}/simplified-tags") for one in series for uid in one["Instances"]]

    def file(self, sop_instance_uid: str, target: Path) -> Path:
        """The stored bytes of an instance."""
        found = self.find("Instance", SOPInstanceUID=sop_instance_uid)
        url = f"{self.url}/instances/{found[0]['ID']}/file"
        with urllib.request.urlopen(url, timeout=10) as answer:
            target.write_bytes(answer.read())
        return target


def errors_of_dciodvfy(path: Path) -> list[str]:
    """Lines in which dciodvfy finds an error."""
    shown = tool("dciodvfy", "-new", path, check=False)
    return [line for line in (shown.stdout + shown.stderr).splitlines() if line.startswith("Error")]


def errors_of_dsrdump(path: Path) -> list[str]:
    """Lines in which DCMTK's dsrdump finds an error."""
    shown = tool("dsrdump", path, check=False)
    lines = [line for line in shown.stderr.splitlines() if line.startswith(("E:", "F:"))]
    return lines if lines or shown.returncode == 0 else [f"exit code {shown.returncode}"]


def errors_of_pixelmed(path: Path) -> list[str]:
    """Lines in which PixelMed's validator, which knows the templates, finds an error.

    Its XPath rules need more operations than Java allows by default. It ends before Java's second compiler, which is
    slow itself, has made anything faster.
    """
    needs("java", "DicomSRValidator")
    brief = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
    lifted = [f"-Djdk.xml.xpath{limit}Limit=0" for limit in ("TotalOp", "ExprGrp", "ExprOp")]
    validator = ("-cp", "/usr/share/java/*", "com.pixelmed.validate.DicomSRValidator")
    shown = tool("java", "-Xmx4g", *brief, *lifted, *validator, path, check=False)
    lines = (shown.stdout + shown.stderr).splitlines()
    if not any(line.startswith("IOD validation complete") for line in lines):
        return [f"not validated: {lines[-1:]}"]
    return [line for line in lines if line.startswith(("Error", "Warning"))]
