"""Every setting is documented, and the page in docs is the one that the code makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from dicom_node.manual import described, manual
from dicom_node.settings import Peer, Settings, Tls

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("model", [Settings, Peer, Tls])
def test_every_setting_says_what_it_is(model: type[BaseModel]) -> None:
    assert described(model).keys() == model.model_fields.keys()


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "settings.md").read_text() == manual(), "run: python -m dicom_node.manual > docs/settings.md"


def test_both_readmes_lead_there() -> None:
    assert "(docs/settings.md)" in (DOCS.parent / "README.md").read_text()
    assert "(../docs/settings.md)" in (DOCS.parent / "deploy" / "README.md").read_text()
