"""What people ask of the node, and what they order: one page. All of it is read from the ledger or written to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.desk.shell import Chosen, complaints, console, explained, kept_ledger, monitored, settings, show
from dicom_node.desk.tables import counted
from dicom_node.study import State

app = typer.Typer()
corrections_app = typer.Typer(help="What people said about reports: disputes and corrections.")
app.add_typer(corrections_app, name="corrections")
deliveries_app = typer.Typer(help="What is owed to whom, and what archives refused.")
app.add_typer(deliveries_app, name="deliveries")

_Because = Annotated[str, typer.Option(help="Why; `dicom-node status STUDY` shows it.")]
_By = Annotated[str | None, typer.Option(help="Who says so; else who is logged in on this machine.")]


@app.command()
@explained
def status(
    study: Annotated[str | None, typer.Argument(help="A Study Instance UID, for its whole story.")] = None,
) -> None:
    """What the node has, does, and did not do, with the reasons."""
    from dicom_node.desk.health import findings
    from dicom_node.desk.status import health, overview, story

    wanted = settings()
    ledger = kept_ledger(wanted)
    if study is None:
        source = Chosen.config or "the defaults"
        console.print(f"{wanted.ae_title}: {wanted.home}, settings from {source}", highlight=False)
    show(*(story(ledger, study) if study else (health(findings(wanted, ledger)), *overview(ledger))))


@app.command()
@monitored
def health(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: well, and the findings.")] = False,
) -> None:
    """What needs a person, for monitors: exits with 0 where nothing does, 1 where something does, 2 without an answer.

    Studies that were laid aside as a whole and deliveries that were given up are not among it; `metrics` counts them.
    """
    from dicom_node.desk import health as node

    wanted = settings()
    with node.answering(kept_ledger(wanted)) as ledger:
        found = list(node.findings(wanted, ledger))
    if as_json:
        typer.echo(node.as_json(found))
    else:
        from dicom_node.desk.status import health as table_of

        typer.echo(node.headline(found))
        show(table_of(found))
    if any(item.remedy for item in found):
        raise typer.Exit(1)


@app.command()
@monitored
def metrics() -> None:
    """The node in figures, in Prometheus' text format; exits with 2 and prints none where they cannot be had."""
    from dicom_node.desk.health import answering
    from dicom_node.desk.metrics import exposition

    wanted = settings()
    with answering(kept_ledger(wanted)) as ledger:
        text = exposition(wanted, ledger)
    typer.echo(text, nl=False)


@app.command()
@explained
def studies(
    state: Annotated[State | None, typer.Option(help="Only those that stand here.")] = None,
    patient: Annotated[
        str | None, typer.Option(help="Only this Patient ID's; the node keeps no more than a hash, and compares that.")
    ] = None,
    issuer: Annotated[str, typer.Option(help="Issuer of Patient ID, where the images carry one.")] = "",
    accession: Annotated[
        str | None, typer.Option(help="Only this Accession Number's, by a hash too; versions before kept none.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 50,
) -> None:
    """List studies, the latest first. By Study Instance UID: no name, Patient ID or Accession Number is kept here."""
    from dicom_node.desk.studies import shown, sought

    if accession is not None and not accession.strip():
        raise typer.BadParameter("an empty one is no number", param_hint="--accession")
    show(shown("Studies", kept_ledger(settings()).studies(sought(state, patient, issuer, accession), limit), why=True))


@app.command()
@explained
def discrepancies(
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on standard output.")] = False,
) -> None:
    """Series whose header names another body part than their pixels show, and how often per scanner."""
    import sys

    from dicom_node.desk.discrepancies import compared, counted, listed, write_csv

    found = list(compared(kept_ledger(settings())))
    if as_csv:
        write_csv(found, sys.stdout)
    else:
        show(listed(found), counted(found))


@app.command()
@explained
def rejections() -> None:
    """Who knocked and was turned away, when and how often, why, and the lines that would admit them."""
    from dicom_node.desk.rejections import rejections as found
    from dicom_node.desk.status import to_paste, turned_away

    wanted = settings()
    knocked = list(found(kept_ledger(wanted), wanted))
    show(turned_away(knocked))
    console.print(to_paste(knocked), markup=False, highlight=False, soft_wrap=True)


@app.command()
@explained
def retry(
    study: Annotated[str | None, typer.Argument(help="Study Instance UID.")] = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="All quarantined studies.")] = False,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="All studies without a label.")] = False,
    dismissed: Annotated[bool, typer.Option("--dismissed", help="All that a person has dismissed.")] = False,
    in_part: Annotated[bool, typer.Option("--in-part", help="All of which a series failed in our code.")] = False,
    reason: Annotated[str, typer.Option(help="Of all these, only those whose reason contains this.")] = "",
) -> None:
    """Try a quarantined, unlabelled or dismissed study again, or all of them; failed deliveries too."""
    from dicom_node.desk.orders import one_or_all, why_not_retried
    from dicom_node.errors import Quarantine
    from dicom_node.ledger.orders import IN_PART

    set_aside: dict[str, bool] = {State.QUARANTINED: quarantined, State.UNLABELLED: unlabelled}
    states = one_or_all(study, {**set_aside, State.DISMISSED: dismissed, IN_PART: in_part}, reason)
    ledger = kept_ledger(settings())
    if study is None:
        if not (count := ledger.orders.retry_studies(states, reason)):
            raise Quarantine("no such study; see `dicom-node status`")
        console.print(f"{counted(count, 'study', 'studies')} queued again")
        return
    if not ledger.orders.retry_study(study):
        raise Quarantine(why_not_retried(study, ledger.study(study)))
    console.print("queued again")


@app.command()
@explained
def dismiss(
    because: _Because,
    study: Annotated[str | None, typer.Argument(help="Study Instance UID.")] = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="All quarantined studies.")] = False,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="All studies without a label.")] = False,
    reason: Annotated[str, typer.Option(help="Of all these, only those whose reason contains this.")] = "",
    by: _By = None,
) -> None:
    """Decide that a quarantined or unlabelled study, or all of them, will not be labelled; its images may go then."""
    from dicom_node.desk.orders import a_dismissal, one_or_all, what_follows, why_not_dismissed
    from dicom_node.errors import Quarantine

    states = one_or_all(study, {State.QUARANTINED: quarantined, State.UNLABELLED: unlabelled}, reason)
    word, wanted = a_dismissal(because, by), settings()
    ledger = kept_ledger(wanted)
    if study is None:
        count = ledger.orders.dismiss_studies(states, reason, word)
        if not count:
            raise Quarantine(
                "no such study; see `dicom-node status`, and `dicom-node deliveries --failed` for what is labelled but "
                "could not be delivered"
            )
        console.print(f"{counted(count, 'study', 'studies')} dismissed. {what_follows(wanted)}")
        return
    if not ledger.orders.dismiss_study(study, word):
        raise Quarantine(why_not_dismissed(study, ledger.study(study)))
    console.print(f"dismissed. {what_follows(wanted, study)}")


@app.command()
@explained
def complete(study: Annotated[str, typer.Argument(help="Study Instance UID.")]) -> None:
    """Say that a study has all its images; it is labelled without waiting any longer."""
    from dicom_node.errors import Quarantine

    ledger = kept_ledger(settings())
    row = ledger.study(study)
    if row is None:
        raise Quarantine(f"{study}: never received here; see `dicom-node status`")
    if not ledger.complete(row, "a person's word"):
        raise Quarantine(f"{study}: is {row.state} or has just grown; see `dicom-node status {study}`")
    console.print(f"{counted(row.instances, 'image')}, queued")


@app.command()
@explained
def amend(
    report: Annotated[str, typer.Argument(help="SOP Instance UID of a report; `dicom-node status STUDY` lists them.")],
    by: Annotated[str, typer.Option(help='Who answers for it, in DICOM form: "Family^Given".')],
    organization: Annotated[str, typer.Option(help="Where that person works.")],
    remove: Annotated[
        list[str] | None,
        typer.Option(help="A label that is not there: LABEL:IMAGE, LABEL:FIRST-LAST, or LABEL: in ALL images."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(help="A label that was missed, likewise; without images it is added to ALL. By Instance Number."),
    ] = None,
    comment: Annotated[str, typer.Option(help="Why; it is written in the report.")] = "",
) -> None:
    """Correct a report: a VERIFIED successor is written and sent wherever reports go."""
    from datetime import datetime

    from dicom_node import corrections
    from dicom_node.reports.amend import Amendment, parse_change, parse_verifier
    from dicom_node.spool import Spool
    from dicom_node.uids import sheet_uid
    from labeler.vocabulary import vocabulary

    wanted, words = settings(), vocabulary()
    changes = [parse_change(text, words, present=False) for text in remove or ()]
    changes += [parse_change(text, words, present=True) for text in add or ()]
    amendment = Amendment(changes, parse_verifier(by, organization), datetime.now().astimezone(), comment)
    ledger = kept_ledger(wanted)
    written = corrections.amend(wanted, ledger, Spool(wanted.home), report, amendment)
    console.print(f"{written.sop_instance_uid} supersedes {report}: {amendment}")
    drawn = ledger.issued.sheet(sheet_uid(written.sop_instance_uid))
    if drawn is None and wanted.receivers_of_sheets:
        complaints.print("[yellow]no evidence sheet could be drawn to it; the log says why[/yellow]")


@corrections_app.callback(invoke_without_command=True)
@explained
def corrections(context: typer.Context) -> None:
    """List what people said about reports, the latest first."""
    if context.invoked_subcommand is None:
        from dicom_node.desk.corrections import shown

        show(shown(kept_ledger(settings()).remarks()))


@corrections_app.command("export")
@explained
def corrections_export(
    folder: Annotated[Path, typer.Argument(help=r"Where to; `\[data] hospital` of a training recipe reads it.")],
) -> None:
    """Copy every corrected series, identified patients and all, with its verified report: to train on your own."""
    from dicom_node.corrections import export

    written = export(kept_ledger(settings()), folder)
    console.print(f"{written} corrected series in {folder}")
    if written:
        complaints.print("[yellow]these images name their patients: keep the folder as safe as the archive[/yellow]")


@deliveries_app.callback(invoke_without_command=True)
@explained
def deliveries(
    context: typer.Context,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were given up.")] = False,
    to: Annotated[str | None, typer.Option(help="Only those to this peer.")] = None,
) -> None:
    """List what has not arrived yet: who waits for it, since which attempt, and the answer so far."""
    if context.invoked_subcommand is None:
        from dicom_node.desk.status import owed

        show(*owed(kept_ledger(settings()), failed, to))


@deliveries_app.command("retry")
@explained
def deliveries_retry(
    report: Annotated[str | None, typer.Argument(help="SOP Instance UID; without it all, or all to one peer.")] = None,
    to: Annotated[str | None, typer.Option(help="Only those to this peer.")] = None,
) -> None:
    """Try now what failed or waits; a destination that rests is tried with one delivery first."""
    from dicom_node.errors import Quarantine

    due = kept_ledger(settings()).deliveries.retry_all(to, report)
    if not due:
        raise Quarantine("no such delivery failed or waits; see `dicom-node deliveries`")
    console.print(f"{counted(due, 'delivery is', 'deliveries are')} due now")


@deliveries_app.command("redirect")
@explained
def deliveries_redirect(
    origin: Annotated[str, typer.Option("--from", help="The peer to which it is owed, in the settings still or not.")],
    to: Annotated[str, typer.Option(help="The peer that gets it instead.")],
    report: Annotated[str | None, typer.Argument(help="SOP Instance UID; without it all.")] = None,
    dismissed: Annotated[bool, typer.Option("--dismissed", help="What a person has dismissed, too.")] = False,
    by: _By = None,
) -> None:
    """Owe what waits for one peer, or failed there, to another: the archive was replaced, or has another name now."""
    from dicom_node.desk.orders import a_redirection, what_stays
    from dicom_node.errors import Quarantine

    wanted = settings()
    word, ledger = a_redirection(wanted, origin, to, by), kept_ledger(wanted)
    done = ledger.orders.redirect(word, report, dismissed)
    stays = what_stays(ledger, origin) if report is None else f"see `dicom-node deliveries --to {origin}`"
    if not done:
        raise Quarantine(f"no such delivery to {origin} failed or waits; {stays}")
    console.print(f"{counted(done, 'delivery', 'deliveries')} redirected to {to}; {stays}", soft_wrap=True)


@deliveries_app.command("dismiss")
@explained
def deliveries_dismiss(
    because: _Because,
    report: Annotated[str | None, typer.Argument(help="SOP Instance UID; without it all to one peer.")] = None,
    to: Annotated[str | None, typer.Option(help="Only those to this peer.")] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="What waits, too: the archive is gone for good.")] = False,
    by: _By = None,
) -> None:
    """Decide that what an archive refused need not arrive there; its study's images may go then."""
    from dicom_node.desk.orders import a_dismissal
    from dicom_node.errors import Quarantine

    if report is None and to is None:
        raise typer.BadParameter("name a report, a peer (--to), or both")
    done = kept_ledger(settings()).deliveries.dismiss(a_dismissal(because, by), to, report, waiting)
    if not done:
        raise Quarantine(
            "no such delivery failed; what waits is tried again by itself, and is dismissed with --waiting only: see "
            "`dicom-node deliveries`"
        )
    console.print(
        f"{counted(done, 'delivery', 'deliveries')} dismissed; `dicom-node deliveries retry REPORT` takes one back"
    )
