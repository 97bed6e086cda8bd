"""The conformance statement in docs is the one that the code makes."""

from __future__ import annotations

from pathlib import Path

from dicom_node.conformance import statement
from labeler.vocabulary import vocabulary

DOCS = Path(__file__).parents[3] / "docs"


def test_the_statement_is_up_to_date() -> None:
    told = (DOCS / "conformance.md").read_text()
    assert told == statement(vocabulary()), "run: python -m dicom_node.conformance > docs/conformance.md"
