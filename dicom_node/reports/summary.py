"""What the ledger keeps of a report, for `dicom-node status` and the demo. Pure."""

from __future__ import annotations

from typing import Any

from dicom_node.reports.report import Context, comparison_of
from labeler.result import Finding, SeriesLabels


def summary_of(answer: SeriesLabels, context: Context) -> dict[str, Any]:
    """What `dicom-node status` and the demo show of a report; images by the numbers that people know."""
    return {
        "modality": answer.modality,
        "plane": answer.plane,
        "images": len(answer.slices),
        "not_labelled": len(answer.skipped),
        "stations": list(answer.stations),
        "organs": list(answer.organs),
        "findings": [_finding(finding, answer) for finding in answer.findings],
        **comparison_of(answer, context).summary(),
        "bundle": f"{answer.bundle.name} {answer.bundle.version}",
    }


def _finding(finding: Finding, answer: SeriesLabels) -> dict[str, Any]:
    said = finding.name in answer.by_person
    return {
        "name": finding.name,
        "kind": finding.kind,
        "images": [[_shown(answer, first), _shown(answer, last)] for first, last in finding.ranges],
        "best": _shown(answer, finding.best),
        "certainty": None if said else finding.certainty,
        "mean_certainty": None if said else finding.mean_certainty,
    }


def _shown(answer: SeriesLabels, position: int) -> int:
    return answer.slices[position].source.shown_number
