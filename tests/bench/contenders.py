"""The receivers that are measured: how each is started, and where it puts what it stores."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from tests.bench.pusher import CALLED, CALLING
from tests.certificates import Authority
from tests.support import needs, program

OURS = "this node"

#: Command line and environment, given the port, the folder, and whether TLS is spoken.
Command = Callable[[int, Path, bool], tuple[list[str], dict[str, str]]]


@dataclass(frozen=True)
class Contender:
    """A receiver.

    Attributes:
        tls: it is measured over TLS too.
        waits: timers of the network rule it; few images tell as much as many.
        speaks: `ae`, DICOM; or `raw`, bare bytes.
        stored: how many images lie in a folder.
        processes: that listen when it is ready.
    """

    name: str
    command: Command
    tls: bool = False
    waits: bool = False
    speaks: str = "ae"
    stored: Callable[[Path], int] = lambda folder: sum(path.is_file() for path in folder.rglob("*"))
    processes: int = 1


def contenders(receivers: int) -> list[Contender]:
    """All of them, ours first: so many processes, and one."""
    needs("storescp", "Orthanc")
    return [
        _node(OURS, receivers=receivers),
        _node("the same, receivers = 1"),
        Contender("pynetdicom, encoded_dataset()", _python("encoded"), tls=True),
        Contender("pynetdicom, dataset and save_as()", _python("dataset"), tls=True),
        *([Contender("DCMTK storescp --fork, made durable", _storescp(True, True))] if which("cc") else []),
        Contender("the same, not durable", _storescp(True)),
        Contender("the same, as shipped", _storescp(False), waits=True),
        Contender("Orthanc, TCP_NODELAY=1", _orthanc(True), stored=_attachments),
        Contender("the same, as shipped ", _orthanc(False), waits=True, stored=_attachments),
        Contender("bare socket to file (bound)", _python("raw"), speaks="raw"),
    ]


def variants(receivers: int) -> list[Contender]:
    """This node by what its settings cost or give."""
    return [
        _node(OURS, receivers=receivers),
        _node("the same, receivers = 1"),
        _node('the same, durability = "group"', 'durability = "group"\n', receivers),
        _node("the same, fast_path = false", "fast_path = false\n", receivers),
    ]


def issued(folder: Path) -> tuple[Path, Path, Path]:
    """Certificate, key and CA that both ends show and trust."""
    certificates = folder / "certificates"
    if not certificates.exists():
        Authority.founded(certificates).issue("bench")
    return certificates / "bench.pem", certificates / "bench.key", certificates / "ca.pem"


def _node(name: str, settings: str = "", receivers: int = 1) -> Contender:
    def command(port: int, folder: Path, tls: bool) -> tuple[list[str], dict[str, str]]:
        certificate, key, ca = issued(folder)
        secure = f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\nca = "{ca}"\nport = {port}\n' if tls else ""
        config = folder / "dicom-node.toml"
        config.write_text(
            f'ae_title = "{CALLED}"\nbind = "127.0.0.1"\nport = {0 if tls else port}\nhome = "{folder / "stored"}"\n'
            f"reserve_mib = 16\nreceivers = {receivers}\n{settings}{secure}"
            f'[[peers]]\nname = "bench"\nae_title = "{CALLING}"\nhost = "any"\ntls = {str(tls).lower()}\n'
        )
        receive = [sys.executable, "-m", "dicom_node", "--config", str(config), "receive"]
        return (receive if receivers == 1 else _together(receive, receivers)), {}

    return Contender(name, command, True, stored=lambda f: len(list(f.glob("spool/**/*.dcm"))), processes=receivers)


def _together(command: list[str], times: int) -> list[str]:
    """A shell that runs it so often, and ends them with itself."""
    started = f'{shlex.join(command)} & all="$all $!"; ' * times
    return ["bash", "-c", f"all=\"\"; trap 'kill $all; wait' TERM; {started} wait"]


def _python(kind: str) -> Command:
    def command(port: int, folder: Path, tls: bool) -> tuple[list[str], dict[str, str]]:
        secrets = map(str, issued(folder)) if tls else ()
        target = str(folder / "stored")
        return [sys.executable, "-m", "tests.bench.servers", kind, str(port), target, *secrets], {}

    return command


def _hurried(hurried: bool) -> dict[str, str]:
    """DCMTK, which is in Orthanc too, reads this variable."""
    return {"TCP_NODELAY": "1"} if hurried else {}


def _storescp(hurried: bool, durable: bool = False) -> Command:
    def command(port: int, folder: Path, _: bool) -> tuple[list[str], dict[str, str]]:
        environment = {**_hurried(hurried), **({"LD_PRELOAD": str(_synchronising(folder))} if durable else {})}
        return [program("storescp"), "--fork", "-od", str(folder / "stored"), str(port)], environment

    return command


def _synchronising(folder: Path) -> Path:
    """A library that makes a program synchronise what it closes."""
    library = folder / "fdatasync.so"
    if not library.exists():
        source = Path(__file__).with_name("fdatasync.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def _orthanc(hurried: bool) -> Command:
    def command(port: int, folder: Path, _: bool) -> tuple[list[str], dict[str, str]]:
        stored, config = str(folder / "stored"), folder / "orthanc.json"
        options = {"StorageDirectory": stored, "IndexDirectory": stored, "DicomAet": CALLED, "DicomPort": port}
        config.write_text(json.dumps({**options, "HttpServerEnabled": False, "DicomAlwaysAllowStore": True}))
        return [program("Orthanc"), str(config)], _hurried(hurried)

    return command


def _attachments(folder: Path) -> int:
    """Orthanc keeps an image, or its header only beside it, under two folders of two hexadecimal digits."""
    return sum(path.stat().st_size > 100_000 for path in folder.glob("??/??/*"))
