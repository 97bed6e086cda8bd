"""The DICOM Conformance Statement (PS3.2), made from the tables that the code itself works with.

python -m dicom_node.conformance > docs/conformance.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom.uid import UID, KeyObjectSelectionDocumentStorage, SecondaryCaptureImageStorage

from dicom_node import __version__, mpps
from dicom_node.association.wire import MAXIMUM_PDU
from dicom_node.commitment import CLASS_CONFLICT, NO_SUCH_OBJECT
from dicom_node.errors import Refused
from dicom_node.receive import DECODABLE
from dicom_node.reports.audit import AUDIT_CLASSES
from dicom_node.reports.gate import TEMPLATE
from dicom_node.send import STORED, WANTED
from dicom_node.settings import Settings, Tls
from dicom_node.spool.dataset import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from dicom_node.study import REPORT_CLASSES
from labeler.vocabulary import Vocabulary, vocabulary

_CHAPTERS = """\
# DICOM Conformance Statement: anatomy node {version}

Made from the code by `python -m dicom_node.conformance`; a test fails when it is out of date. Layout after PS3.2.

## 1 Overview

The node receives CT and MR studies, labels the anatomy that their pixels show, and stores the labels as Structured
Reports in an archive. It keeps every object that it is sent and changes none. It is for research use.

{overview}

## 2 Implementation identity

{identity}

## 3 Association policies

The called AE title must be ours, the calling AE title and its host must be configured; otherwise the association is
rejected (rejected-permanent, service-user; reason 7 called, 3 calling AE title not recognised, 1 in plain where TLS is
due; rejected-transient, service-provider, reason 2 where a limit is reached) and counted.
Asynchronous operations, user identity and extended negotiation are not used.

{associations}

## 4 Storage SCP

Every SOP class of the Storage Service is accepted, and any other Storage-like UID that a peer proposes: level 2 (full),
no attribute is dropped or coerced, private ones are kept. The data set is written as it came, in its own transfer
syntax, and made durable before the answer. Labelled are objects of modality CT and MR with pixel data and an image
orientation, whatever their SOP class, which the report references as it came; all else is kept, and `dicom-node status`
says why it was not labelled. Attributes of another VR than their own, or beyond reading, are left out of the report.
The same object again is a success and is kept once; other bytes under a known SOP Instance UID are kept beside it and
flagged.

Of the transfer syntaxes that a peer proposes for a presentation context the first that stands here is accepted; where
none does, the peer's first, whose objects are kept and not labelled:

{syntaxes}

### 4.1 Status of C-STORE responses

{statuses}

A failure comes with an Error Comment (0000,0902) that says why, of at most 64 characters and without patients' data.

### 4.2 Objects in which people answer

From a peer that may `audit`: a Key Object Selection titled Quality Issue (113010, DCM) or Rejected for Quality Reasons
(113001, DCM) that references a report of ours disputes it; a VERIFIED report whose Predecessor Documents Sequence names
a report of ours corrects it. What it says of its images holds: when more images of the series come, the next report,
UNVERIFIED, keeps these labels, names the person as observer and the verified report in a Comment, and has it, with any
report that it did not know of, in its Predecessor Documents Sequence.

{audit}

## 5 Storage SCU

To each peer that may get `reports`, any number of objects over one association, which is released when nothing was
sent for `idle_seconds`; at most `parallel` deliveries at a time. Of the report all its classes of the table are
proposed; the best one accepted is used. Reports of a class other than the first have a SOP Instance UID of their own,
derived from its. The evidence sheet, a Secondary Capture, goes to a peer unless it has `sheet = false`; run-length
encoded where that is accepted, else plain; where no Secondary Capture is accepted it is left out. A report that is
amended here has a sheet of its own, the next instance of the same series, whose pixels say who verified it, when, and
what was changed; no patient is named in them (Burned In Annotation is NO). A peer with
`reject_superseded = true` gets, once the newer report is stored there, a Key Object Selection titled Rejected for
Quality Reasons (113001, DCM) that names the superseded report and nothing else, and another that names the sheet to it
where that was stored there (IHE IOCM).

{sent}

Stored: {stored}, other warnings, and 0x0111, since nothing but the same object has its UID. Tried again with growing
pauses: 0xA7xx, 0x0210, 0x0213, no answer, no association; 0x0110 too, but ten times at most. All other answers lay the
delivery aside with the archive's words; `dicom-node deliveries retry` tries it again, under the same UID, `deliveries
dismiss` leaves it at that. A peer that fails several times in a row rests, and is then tried with one object at a time.

A peer with `tls = true` is called over TLS only (1.2 with ECDHE and AEAD, or 1.3), with our certificate. Its own must
come from the CA of the settings and name the host that we call, unless `verify_names = false`.

### 5.1 Storage commitment

As SCU, of peers with `commitment = true`: an N-ACTION for every object right after its storage, on an association of
its own; the N-EVENT-REPORT is taken on any association to our port in which the archive proposes the SCP role. What is
not committed is sent again; what is not answered for within 10 minutes, doubling up to a day, too. As SCP, for peers
with a host and a port that may `push`: an object is committed when it is durable in the spool and known to the ledger;
Failure Reasons {no_object} and {class_conflict}. It stays so for `retention_days` ({retention:g} by default) after the
answer; what has left the spool is answered as not held. The N-EVENT-REPORT goes out on an association of its own, with
the SCP role proposed, and is tried again until it is taken, or `retention_days` are over and it says nothing any more.

### 5.2 Query

Of peers with `check_patient = true`: before every delivery a C-FIND on STUDY level with the Study Instance UID,
returning Patient ID. A study that is filed there under another Patient ID than its images had is held. Of peers with
`counts = true`: the same, returning Number of Study Related Instances, while images of a study have paused.

### 5.3 Modality Performed Procedure Step

SCP, for peers that may `push`: N-CREATE and N-SET. Of their attributes the Study Instance UID of the first item of the
Scheduled Step Attributes Sequence, the Performed Procedure Step Status and the Referenced Image Sequences are kept:
they tell when a study is complete. No attribute is required beyond these. There is no N-GET and no forwarding.

{steps}

## 6 Verification

SCP for every configured peer; SCU by `dicom-node echo` and `dicom-node preflight`.

## 7 Structured Reports

Template TID 1500 Imaging Measurement Report, completion flag COMPLETE, UNVERIFIED and PRELIMINARY until a person amends
it, content qualification RESEARCH. One report per labelled series, in one report series per labelled series; revisions
name their predecessor. UIDs are derived from content (`2.25.`): a rebuild gives the same object. Patient and study
attributes are the source's own.

{template}

### 7.1 Codes of Finding Site and Target Region

{codes}

## 8 Character sets

The source's single character set, else ISO_IR 192; any that pydicom decodes is read.

## 9 Security

Associations are told apart by AE title and host. With a [tls] table the node also listens for TLS, on port {tls_port}
unless that table says otherwise, and calls peers that have `tls = true` over TLS only; in plain such a one is rejected.
TLS 1.2 with ECDHE key exchange and AEAD ciphers, or 1.3; both sides show a certificate of a configured CA (PS3.15 B.12,
BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile). Certificates are read again when their files change.
Revocation is not checked.
"""

_MEANS = {
    "121049": "Language of Content Item and Descendants",
    "121005": "Observer Type",
    "121008": "Person Observer Name",
    "121009": "Person Observer's Organization Name",
    "121012": "Device Observer UID",
    "121013": "Device Observer Name",
    "121014": "Device Observer Manufacturer",
    "121015": "Device Observer Model Name",
    "121016": "Device Observer Serial Number",
    "121058": "Procedure reported",
    "126000": "Imaging Measurement Report",
    "126010": "Imaging Measurements",
    "C0034375": "Qualitative Evaluations",
    "111001": "Algorithm Name",
    "111003": "Algorithm Version",
    "111002": "Algorithm Parameters",
    "125007": "Measurement Group",
    "112039": "Tracking Identifier",
    "112040": "Tracking Unique Identifier",
    "121071": "Finding",
    "363698007": "Finding Site",
    "111012": "Certainty of Finding",
    "121112": "Source of Measurement",
    "121401": "Derivation",
    "123014": "Target Region",
    "121111": "Summary",
    "121106": "Comment",
}


def statement(words: Vocabulary) -> str:
    """The whole statement as Markdown."""
    shown = Settings.model_construct()
    return _CHAPTERS.format(
        version=__version__,
        overview=_table(("service", "as SCU", "as SCP"), _OVERVIEW),
        identity=_table(
            ("", ""),
            [
                ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
                ("Implementation Version", IMPLEMENTATION_VERSION),
            ],
        ),
        associations=_table(
            ("", "default"),
            [
                ("AE title", shown.ae_title),
                ("port", shown.port),
                ("PDU size received", f"{MAXIMUM_PDU} bytes"),
                ("receivers that share the port", shown.receivers or "two where there are two processors, else one"),
                ("associations at a time, of one host", f"{shown.associations}, {shown.associations_per_host} each"),
                ("time for the association request", f"{shown.request_timeout:g} s"),
                ("largest object", f"{shown.instance_limit_mib} MiB"),
                ("ARTIM, DIMSE and idle timeout", f"{shown.network_timeout:g} s"),
            ],
        ),
        syntaxes=_table(("transfer syntax", "UID"), [(UID(uid).name, uid) for uid in sorted(DECODABLE, key=_order)]),
        statuses=_table(("status", "meaning"), _statuses()),
        audit=_classes(sorted(AUDIT_CLASSES)),
        sent=_table(
            ("SOP class", "UID", "transfer syntaxes"),
            [
                (uid.name, uid, ", ".join(s.name for s in WANTED[uid]))
                for uid in (*REPORT_CLASSES, SecondaryCaptureImageStorage, KeyObjectSelectionDocumentStorage)
            ],
        ),
        no_object=f"0x{NO_SUCH_OBJECT:04X}",
        class_conflict=f"0x{CLASS_CONFLICT:04X}",
        retention=shown.retention_days,
        steps=_table(("status", "meaning"), _STEP_STATUSES),
        stored=", ".join(f"0x{status:04X}" for status in sorted(STORED)),
        template=_table(("below", "concept", "relationship", "type", "times"), _rows()),
        tls_port=Tls.model_fields["port"].default,
        codes=_table(("code", "meaning", "kind"), _codes(words)),
    )


_OVERVIEW = [
    ("Verification", "yes", "yes"),
    ("Storage of images and any other object", "by `dicom-node send` only", "yes"),
    ("Storage of Structured Reports", "yes", "yes"),
    ("Storage of Secondary Captures (evidence sheets)", "yes", "yes"),
    ("Storage of Key Object Selections (rejection notes, disputes)", "yes", "yes"),
    ("Storage Commitment Push Model", "yes", "yes"),
    ("Study Root Query/Retrieve, FIND", "yes", "no"),
    ("Modality Performed Procedure Step", "no", "yes"),
    ("MOVE, GET, Worklist", "no", "no"),
]


_STEP_STATUSES = [
    (f"0x{mpps.SUCCESS:04X}", "entered"),
    (
        f"0x{mpps.INVALID_VALUE:04X}",
        "no such status, or a step that does not begin IN PROGRESS",
    ),
    (f"0x{mpps.PROCESSING_FAILURE:04X}", f"the step has ended (Error ID 0x{mpps.MAY_NOT_BE_UPDATED:04X})"),
    (f"0x{mpps.DUPLICATE:04X}", "the step has begun already"),
    (f"0x{mpps.NO_SUCH_OBJECT:04X}", "no such step has begun"),
    (f"0x{mpps.INVALID_OBJECT:04X}", "the step has no valid SOP Instance UID"),
    (f"0x{mpps.MISSING_ATTRIBUTE:04X}", "no Study Instance UID"),
    (f"0x{mpps.NOT_AUTHORISED:04X}", "the peer may not push"),
]


def _order(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def _statuses() -> Iterator[tuple[str, str]]:
    yield "0x0000", "the object would survive a power cut and stands in the ledger"
    for error in sorted(Refused.__subclasses__(), key=lambda kind: kind.status):
        yield f"0x{error.status:04X}", (error.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _rows() -> Iterator[tuple[str, str, str, str, str]]:
    for parent, rows in TEMPLATE.items():
        for row in rows:
            times = f"{row.least}-{'n' if row.most is None else row.most}"
            yield _MEANS[parent], f"{_MEANS[row.concept]} ({row.concept})", row.relationship, row.value_type, times


def _codes(words: Vocabulary) -> Iterator[tuple[str, str, str]]:
    for label in words.labels:
        yield f"{label.code.value}, {label.code.scheme}", label.code.meaning, label.kind
    for region in words.regions:
        yield f"{region.code.value}, {region.code.scheme}", region.code.meaning, "combined station"


def _classes(uids: Sequence[str]) -> str:
    return _table(("SOP class", "UID"), [(UID(uid).name, uid) for uid in uids])


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    print(statement(vocabulary()), end="")
