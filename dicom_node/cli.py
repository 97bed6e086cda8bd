"""The commands that run the node and try its connections: one page; `dicom_node.desk` has what people ask of it.

Every command reads the settings (`--config FILE`, or see `dicom_node.settings`), does one thing, and exits with 1 and
one readable message when it cannot.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from dicom_node import __version__
from dicom_node.desk import commands
from dicom_node.desk.shell import Chosen, console, explained, settings, show
from dicom_node.desk.tables import counted
from dicom_node.settings import find_config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Labels the anatomy in every CT and MR study that scanners push, and stores the labels in PACS.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the settings.")
app.add_typer(config_app, name="config")
app.add_typer(commands.app)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"dicom-node {__version__}")
        raise typer.Exit


@app.callback()
def main(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the settings.")] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    os.umask(0o077)  # what we write tells of patients; our children inherit it
    Chosen.config = find_config(config)


def _until_told() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


@app.command()
@explained
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the reports and labels.")] = Path("demo-out"),
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the reports.")] = 300.0,
) -> None:
    """Show the whole way on this machine: a scanner pushes, the node labels, an archive gets the reports."""
    from rich.console import Console

    from dicom_node.demo.play import play

    if not play(out, Console(), timeout):  # its table is to be looked at, even in a log
        raise typer.Exit(1)


@app.command()
@explained
def chaos(
    studies: Annotated[int, typer.Option(help="Studies that scanners push.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed deals the same blows.")] = 1,
    blows: Annotated[int, typer.Option(help="Kills, pauses, cuts ... in all.")] = 60,
    home: Annotated[
        Path | None, typer.Option(help="An empty folder; unset: a new one, removed when all is well.")
    ] = None,
    ledger: Annotated[str, typer.Option(help="sqlite, postgresql (a cluster of its own), or auto.")] = "auto",
    pacs: Annotated[str, typer.Option(help="archive (the demo's) or orthanc (where it is installed).")] = "archive",
    patience: Annotated[
        float, typer.Option(help="Seconds in which, after the last blow, a study must come to its end.")
    ] = 120.0,
    without: Annotated[list[str] | None, typer.Option(help='Leave out a means, as in --without "clock".')] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Rehearse the worst night on a scratch node: kill, stop, cut and fill while scanners push; check every promise."""
    from dicom_node.chaos.rehearse import Wish, rehearse

    wish = Wish(studies, seed, blows, home, ledger, pacs, patience, frozenset(without or ()))
    if not rehearse(wish, console, json):
        raise typer.Exit(1)


@app.command()
@explained
def up() -> None:
    """Run the whole node on this machine: receiver, watcher, workers, and a broker where none is set."""
    from dicom_node.desk.check import must_work
    from dicom_node.logs import configure
    from dicom_node.processes import notify
    from dicom_node.processes.node import announced, await_ports, introduce, supervised

    configure()
    stop, wanted = _until_told(), settings()
    must_work(wanted)
    await_ports(wanted)
    node = supervised(wanted, Chosen.config)
    with announced(wanted):
        node.start()
        try:
            notify.ready()
            introduce(wanted, Chosen.config)
            node.run(stop)
        finally:
            notify.stopping()
            stuck = node.stop()
    if stuck:
        raise typer.Exit(1)


@app.command()
@explained
def receive(
    number: Annotated[int, typer.Option(min=1, help="Which one this is, where `receivers` share the port.")] = 1,
) -> None:
    """Run the receiver: C-ECHO and C-STORE into the spool."""
    from dicom_node.ledger import Ledger
    from dicom_node.logs import configure
    from dicom_node.processes.notify import Signs, receiver_name
    from dicom_node.receive import Receiver
    from dicom_node.spool import Spool

    configure()
    stop, wanted = _until_told(), settings()
    spool = Spool(wanted.home, wanted.reserve_mib << 20, wanted.durability)
    ledger = Ledger(wanted.ledger_url)
    receiver = Receiver(wanted, spool, ledger)
    receiver.start()
    signs = Signs(ledger, receiver_name(number), wanted.sign_seconds)
    signs.until(stop, "listening")
    receiver.stop()
    signs.leave()


@app.command()
@explained
def watch() -> None:
    """Run the watcher: complete studies are queued, forgotten work is rung for again."""
    from dicom_node.ledger import Ledger
    from dicom_node.logs import configure
    from dicom_node.spool import Spool
    from dicom_node.tasks import Bell, connect
    from dicom_node.watch import watch as run

    configure()
    stop, wanted = _until_told(), settings()
    run(wanted, Ledger(wanted.ledger_url), Bell(connect(wanted)), Spool(wanted.home), stop)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@explained
def worker(context: typer.Context) -> None:
    """Run a worker: Celery's own command line; its options follow, as in `dicom-node worker --queues label`."""
    from dicom_node.processes.worker import run_worker
    from dicom_node.settings import CONFIG_VARIABLE

    if Chosen.config:
        os.environ[CONFIG_VARIABLE] = str(Chosen.config.resolve())
    run_worker(settings(), context.args)


@app.command()
@explained
def echo(peer: Annotated[str, typer.Argument(help="Name of a peer in the settings.")]) -> None:
    """C-ECHO a peer."""
    from dicom_node.association.call import Caller
    from dicom_node.send import echo as ask

    wanted = settings()
    with Caller(wanted) as caller:
        ask(wanted.peer(peer), caller)
    console.print(f"[green]{peer} answers[/green]")


@app.command()
@explained
def preflight(peer: Annotated[str, typer.Argument(help="Name of a peer in the settings.")]) -> None:
    """Ask a peer which objects it would take, in which transfer syntaxes; no object is sent."""
    from dicom_node.association.call import Caller
    from dicom_node.desk.status import accepted
    from dicom_node.send import preflight as ask

    wanted = settings()
    with Caller(wanted) as caller:
        table, takes_reports = accepted(ask(wanted.peer(peer), caller), peer)
    show(table)
    if not takes_reports:
        raise typer.Exit(1)


@app.command()
@explained
def send(
    peer: Annotated[str, typer.Argument(help="Name of a peer in the settings.")],
    path: Annotated[Path, typer.Argument(help="A DICOM file or a folder of them.")],
) -> None:
    """C-STORE files to a peer; what is no DICOM object is named, and the others are sent."""
    from rich.progress import track

    from dicom_node.association.call import Caller
    from dicom_node.errors import NoObject, Quarantine
    from dicom_node.send import must_be_object, store

    wanted = settings()
    to = wanted.peer(peer)
    if not path.exists():
        raise Quarantine(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    left_out: list[str] = []
    with Caller(wanted) as caller:
        for file in track(files, description=f"Sending to {peer}", console=console):
            try:
                must_be_object(file)
            except NoObject as error:
                left_out.append(str(error))
            else:
                store(file, to, caller)
    console.print(f"[green]{counted(len(files) - len(left_out), 'object')} stored by {peer}[/green]")
    if left_out:
        raise NoObject("\n".join(left_out))


@config_app.command("check")
@explained
def config_check(
    echo_peers: Annotated[
        bool, typer.Option("--echo/--no-echo", help="Ask the broker, the database and every peer with a port.")
    ] = True,
) -> None:
    """Check the settings and what they name, echo the peers, and print what the node would do."""
    from dicom_node.desk.check import looked_at, table_of

    table, healthy = table_of(looked_at(settings(), echo_peers), Chosen.config)
    show(table)
    if not healthy:
        raise typer.Exit(1)
