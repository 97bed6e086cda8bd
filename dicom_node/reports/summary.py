"""What the ledger keeps of a report, for `dicom-node status` and the demo. Pure."""

from __future__ import annotations

from typing import Any

from dicom_node.reports.groups import Numbers
from dicom_node.reports.report import Context, comparison_of
from labeler.result import Finding, SeriesLabels


def summary_of(answer: SeriesLabels, context: Context) -> dict[str, Any]:
    """What `dicom-node status` and the demo show of a report; images by the numbers that people know."""
    numbers = Numbers.of(answer.slices)
    return {
        "modality": answer.modality,
        "plane": answer.plane,
        "images": len(answer.slices),
        "not_labelled": len(answer.skipped),
        "stations": list(answer.stations),
        "organs": list(answer.organs),
        "findings": [_finding(finding, answer, numbers) for finding in answer.findings],
        **comparison_of(answer, context).summary(),
        "bundle": f"{answer.bundle.name} {answer.bundle.version}",
    }


def _finding(finding: Finding, answer: SeriesLabels, numbers: Numbers) -> dict[str, Any]:
    said = finding.name in answer.by_person
    return {
        "name": finding.name,
        "kind": finding.kind,
        "images": [list(stretch) for stretch in numbers.stretches(finding.positions)],
        "best": answer.slices[finding.best].source.shown_number,
        "certainty": None if said else finding.certainty,
        "mean_certainty": None if said else finding.mean_certainty,
    }
