"""Fixtures for all tests; the environment is scrubbed of our own variables first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import SHARED, Orthanc

#: `--hypothesis-profile=siege`: the long form of `integration/test_hostile.py`.
settings.register_profile("siege", max_examples=3000)

# our models are so small here that several threads wait for each other longer than they calculate
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a page through a pipe is as wide as its tables, but workers of pytest-xdist are told the width of a terminal
for variable in [name for name in os.environ if name.startswith("DICOM_NODE_") or name == "COLUMNS"]:
    del os.environ[variable]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The project's own image collection lies beside the checkout only where we work."""
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason="the project's own image collection is not here"))


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")).started() as server:
        yield server


@pytest.fixture(scope="session")
def real_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of real DICOM series by name (`ct_abdomen`, `mr_head` ...)."""
    import tarfile

    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(SHARED / "dicom" / "series.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in every Python 3.11
        archive.extractall(folder)
    return folder / "dicom"
