"""The commands: one page.

Every command reads the settings (`--config FILE`, or see `dicom_node.settings`), does one thing, and exits with 1 and
one readable message when it cannot.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from dicom_node import __version__
from dicom_node.errors import NodeError
from dicom_node.settings import Settings, find_config, load_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Labels the anatomy in every CT and MR study that scanners push, and stores the labels in PACS.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the settings.")
app.add_typer(config_app, name="config")
corrections_app = typer.Typer(help="What people said about reports: disputes and corrections.")
app.add_typer(corrections_app, name="corrections")
deliveries_app = typer.Typer(help="What is owed to whom, and what archives refused.")
app.add_typer(deliveries_app, name="deliveries")
console = Console()
complaints = Console(stderr=True)


class _State:
    config: Path | None = None


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"dicom-node {__version__}")
        raise typer.Exit


@app.callback()
def main(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the settings.")] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    _State.config = find_config(config)


def settings() -> Settings:
    return load_settings(_State.config)


def explained(command: Callable[..., Any]) -> Callable[..., Any]:
    """Our errors become one message and exit code 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except NodeError as error:
            complaints.print(f"[red]{escape(str(error))}[/red]", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error

    return run


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
    from dicom_node.demo.play import play

    if not play(out, console, timeout):
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
    from dicom_node import notify
    from dicom_node.logs import configure
    from dicom_node.supervise import await_ports, supervised

    configure()
    stop, wanted = _until_told(), settings()
    await_ports(wanted)
    node = supervised(wanted, _State.config)
    node.start()
    notify.ready()
    try:
        node.run(stop)
    finally:
        notify.stopping()
        node.stop()


@app.command()
@explained
def receive() -> None:
    """Run the receiver: C-ECHO and C-STORE into the spool."""
    from dicom_node.ledger import Ledger
    from dicom_node.logs import configure
    from dicom_node.notify import Signs
    from dicom_node.receive import Receiver
    from dicom_node.spool import Spool

    configure()
    stop, wanted = _until_told(), settings()
    spool = Spool(wanted.home, wanted.reserve_mib << 20, wanted.durability)
    ledger = Ledger(wanted.ledger_url)
    receiver = Receiver(wanted, spool, ledger)
    receiver.start()
    Signs(ledger, "receive", wanted.sign_seconds).until(stop, "listening")
    receiver.stop()


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
    import os

    from dicom_node.settings import CONFIG_VARIABLE
    from dicom_node.worker import run_worker

    if _State.config:
        os.environ[CONFIG_VARIABLE] = str(_State.config.resolve())
    run_worker(settings(), context.args)


@app.command()
@explained
def echo(peer: Annotated[str, typer.Argument(help="Name of a peer in the settings.")]) -> None:
    """C-ECHO a peer."""
    from dicom_node.call import Caller
    from dicom_node.send import echo as ask

    wanted = settings()
    with Caller(wanted) as caller:
        ask(wanted.peer(peer), caller)
    console.print(f"[green]{peer} answers[/green]")


@app.command()
@explained
def preflight(peer: Annotated[str, typer.Argument(help="Name of a peer in the settings.")]) -> None:
    """Ask a peer which objects it would take, in which transfer syntaxes; no object is sent."""
    from dicom_node.call import Caller
    from dicom_node.send import preflight as ask
    from dicom_node.status import accepted

    wanted = settings()
    with Caller(wanted) as caller:
        table, takes_reports = accepted(ask(wanted.peer(peer), caller), peer)
    console.print(table)
    if not takes_reports:
        raise typer.Exit(1)


@app.command()
@explained
def send(
    peer: Annotated[str, typer.Argument(help="Name of a peer in the settings.")],
    path: Annotated[Path, typer.Argument(help="A DICOM file or a folder of them.")],
) -> None:
    """C-STORE files to a peer."""
    from rich.progress import track

    from dicom_node.call import Caller
    from dicom_node.errors import Quarantine
    from dicom_node.send import store

    wanted = settings()
    to = wanted.peer(peer)
    if not path.exists():
        raise Quarantine(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    with Caller(wanted) as caller:
        for file in track(files, description=f"Sending to {peer}", console=console):
            store(file, to, caller)
    console.print(f"[green]{len(files)} objects stored by {peer}[/green]")


@app.command()
@explained
def status(
    study: Annotated[str | None, typer.Argument(help="A Study Instance UID, for its whole story.")] = None,
) -> None:
    """What the node has, does, and did not do, with the reasons."""
    from dicom_node.health import findings
    from dicom_node.ledger import Ledger
    from dicom_node.status import health, overview, story

    wanted = settings()
    ledger = Ledger(wanted.ledger_url)
    for part in story(ledger, study) if study else (health(findings(wanted, ledger)), *overview(ledger)):
        console.print(part)


@app.command()
@explained
def discrepancies(
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on standard output.")] = False,
) -> None:
    """Series whose header names another body part than their pixels show, and how often per scanner."""
    import sys

    from dicom_node.discrepancies import compared, counted, listed, write_csv
    from dicom_node.ledger import Ledger

    found = list(compared(Ledger(settings().ledger_url)))
    if as_csv:
        write_csv(found, sys.stdout)
    else:
        console.print(listed(found), counted(found), sep="\n")


@app.command()
@explained
def rejections() -> None:
    """Who knocked and was turned away, when and how often, why, and the lines that would admit them."""
    from dicom_node.ledger import Ledger
    from dicom_node.rejections import rejections as found
    from dicom_node.status import to_paste, turned_away

    wanted = settings()
    knocked = list(found(Ledger(wanted.ledger_url), wanted))
    console.print(turned_away(knocked))
    console.print(to_paste(knocked), markup=False, highlight=False, soft_wrap=True)


@app.command()
@explained
def retry(study: Annotated[str, typer.Argument(help="Study Instance UID.")]) -> None:
    """Try a quarantined or unlabelled study again."""
    from dicom_node.errors import Quarantine
    from dicom_node.ledger import Ledger

    if not Ledger(settings().ledger_url).retry_study(study):
        raise Quarantine(f"{study}: no such study is quarantined or unlabelled; see `dicom-node status`")
    console.print("queued again")


@app.command()
@explained
def complete(study: Annotated[str, typer.Argument(help="Study Instance UID.")]) -> None:
    """Say that a study has all its images; it is labelled without waiting any longer."""
    from dicom_node.errors import Quarantine
    from dicom_node.ledger import Ledger

    ledger = Ledger(settings().ledger_url)
    row = ledger.study(study)
    if row is None:
        raise Quarantine(f"{study}: never received here; see `dicom-node status`")
    if not ledger.complete(row, "a person's word"):
        raise Quarantine(f"{study}: is {row.state} or has just grown; see `dicom-node status {study}`")
    console.print(f"{row.instances} images, queued")


@app.command()
@explained
def amend(
    report: Annotated[str, typer.Argument(help="SOP Instance UID of a report; `dicom-node status STUDY` lists them.")],
    by: Annotated[str, typer.Option(help='Who answers for it, in DICOM form: "Family^Given".')],
    organization: Annotated[str, typer.Option(help="Where that person works.")],
    remove: Annotated[list[str] | None, typer.Option(help="A label that is not there: LABEL[:FIRST-LAST].")] = None,
    add: Annotated[list[str] | None, typer.Option(help="A label that was missed: LABEL[:FIRST-LAST].")] = None,
    comment: Annotated[str, typer.Option(help="Why; it is written in the report.")] = "",
) -> None:
    """Correct a report: a VERIFIED successor is written and sent wherever reports go."""
    from datetime import datetime

    from dicom_node import corrections
    from dicom_node.amend import Verifier, parse_change
    from dicom_node.ledger import Ledger
    from dicom_node.spool import Spool
    from labeler.vocabulary import vocabulary

    wanted, words = settings(), vocabulary()
    changes = [parse_change(text, words, present=False) for text in remove or ()]
    changes += [parse_change(text, words, present=True) for text in add or ()]
    written = corrections.amend(
        wanted,
        Ledger(wanted.ledger_url),
        Spool(wanted.home),
        report,
        changes,
        Verifier(by, organization),
        comment,
        datetime.now().astimezone(),
    )
    console.print(f"{written.sop_instance_uid} supersedes {report}: {'; '.join(map(str, changes))}")


@corrections_app.callback(invoke_without_command=True)
@explained
def corrections(context: typer.Context) -> None:
    """List what people said about reports, the latest first."""
    if context.invoked_subcommand is None:
        from dicom_node.corrections import shown
        from dicom_node.ledger import Ledger

        console.print(shown(Ledger(settings().ledger_url).remarks()))


@corrections_app.command("export")
@explained
def corrections_export(
    folder: Annotated[Path, typer.Argument(help="Where to; `[data] hospital` of a training recipe reads it.")],
) -> None:
    """Copy every corrected series with its verified report: training material of your own."""
    from dicom_node.corrections import export
    from dicom_node.ledger import Ledger

    written = export(Ledger(settings().ledger_url), folder)
    console.print(f"{written} corrected series in {folder}")


@deliveries_app.callback(invoke_without_command=True)
@explained
def deliveries(
    context: typer.Context,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were given up.")] = False,
    to: Annotated[str | None, typer.Option(help="Only those to this peer.")] = None,
) -> None:
    """List what has not arrived yet: who waits for it, since which attempt, and the answer so far."""
    if context.invoked_subcommand is None:
        from dicom_node.ledger import Ledger
        from dicom_node.status import owed

        for part in owed(Ledger(settings().ledger_url), failed, to):
            console.print(part)


@deliveries_app.command("retry")
@explained
def deliveries_retry(
    report: Annotated[str | None, typer.Argument(help="SOP Instance UID; without it all, or all to one peer.")] = None,
    to: Annotated[str | None, typer.Option(help="Only those to this peer.")] = None,
) -> None:
    """Try now what failed or waits; a destination that rests is tried with one delivery first."""
    from dicom_node.errors import Quarantine
    from dicom_node.ledger import Ledger

    due = Ledger(settings().ledger_url).deliveries.retry_all(to, report)
    if not due:
        raise Quarantine("no such delivery failed or waits; see `dicom-node deliveries`")
    console.print(f"{due} deliveries are due now")


@config_app.command("check")
@explained
def config_check(
    echo_peers: Annotated[bool, typer.Option("--echo/--no-echo", help="C-ECHO every peer with a port.")] = True,
) -> None:
    """Check the settings, echo the peers, and print what the node would do."""
    from dicom_node.status import checked

    wanted = settings()
    table, healthy = checked(wanted, _State.config, echo_peers)
    console.print(table)
    if not healthy:
        raise typer.Exit(1)
