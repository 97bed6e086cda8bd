"""OHIF in Chromium opens a study with our report and our sheet, without an error; pictures for `docs/viewers.md`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dicom_node.study import Delivery
from tests.factories import a_series
from tests.parts import Bench
from tests.support import Orthanc, eventually, missing, needs
from tests.viewer import served

_DICOMWEB = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
_SOFTWARE_DRAWING = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
_STATION, _WARNING = (86, 180, 233), (240, 160, 40)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which the viewer shows a labelled study, whose header is wrong on purpose."""
    needs("chromium", "Orthanc")
    if not Path(_DICOMWEB).exists():
        missing("orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("viewer")
    orthanc = Orthanc(folder / "orthanc", [_DICOMWEB])
    with orthanc.started(), served(orthanc.url) as address:
        bench = Bench(folder / "home", orthanc.dicom_port, ae_title=orthanc.ae_title, sheet=True)
        images = a_series("torso", 24, name="viewer", body_part="HEAD")
        for number, image in enumerate(images):
            orthanc.takes(image, folder / f"{number}.dcm")
        uid = bench.take(images)
        bench.label(uid)
        assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
        bench.ledger.engine.dispose()
        yield f"{address}/viewer?StudyInstanceUIDs={uid}"


@pytest.fixture
def page(study: str) -> Iterator[Page]:
    """The study, opened; an error of the page or of a request fails the test."""
    wrong: list[str] = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=_SOFTWARE_DRAWING)
        opened = browser.new_page(viewport={"width": 1920, "height": 1080})
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        opened.goto(study)
        opened.wait_for_selector('[data-cy="study-browser-thumbnail-no-image"]', timeout=120_000)
        opened.wait_for_selector(".shepherd-element", timeout=60_000)
        eventually(lambda: has_sent_the_guide_away(opened), 90)
        eventually(lambda: (shown(opened) > 60).mean() > 0.1, 60)  # the first image stands
        yield opened
        browser.close()
    assert wrong == []


def has_sent_the_guide_away(page: Page) -> bool:
    """A tour greets every new user, and is deaf while it appears."""
    page.keyboard.press("Escape")
    return page.locator(".shepherd-modal-is-visible").count() == 0


def shown(page: Page) -> np.ndarray:
    """What the viewer's pane shows, uint8 (rows, columns, 3)."""
    picture = page.locator('[data-cy="viewport-grid"]').screenshot()
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB"))


def share_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(picture.astype(int) - colour).max(axis=-1) < 12).mean())


def kept(page: Page, name: str) -> None:
    """Keep the screen as a picture where the documentation is made: VIEWER_PICTURES=docs."""
    if folder := os.environ.get("VIEWER_PICTURES"):
        screen = Image.open(BytesIO(page.screenshot())).convert("RGB").resize((1280, 720), Image.Resampling.LANCZOS)
        screen.quantize(128).save(Path(folder) / f"{name}.png", optimize=True)


def test_ohif_lists_images_sheet_and_report_and_shows_the_sheet(page: Page) -> None:
    thumbnails = page.locator('[data-cy^="study-browser-thumbnail"]').all_inner_texts()
    assert sorted(text.split("\n")[0] for text in thumbnails) == ["CT", "OT", "SR"]
    before = share_of(shown(page), _STATION)
    page.get_by_text("AI evidence sheet").first.dblclick()
    eventually(lambda: share_of(shown(page), _STATION) > before + 0.01, 30)
    assert share_of(shown(page), _WARNING) > 0.001
    page.mouse.move(5, 5)
    kept(page, "ohif-sheet")


def test_ohif_opens_the_report_without_an_error(page: Page) -> None:
    """It shows none of a report without coordinates (so the sheet), but must not stumble over it."""
    page.get_by_text("AI anatomy labels").first.dblclick()
    page.wait_for_timeout(4000)
    assert page.get_by_text("Something went wrong").count() == 0
    page.get_by_text("AI evidence sheet").first.dblclick()
    eventually(lambda: share_of(shown(page), _STATION) > 0.01, 30)
