"""The latency bench runs; what it measures here is nobody's verdict."""

from __future__ import annotations

import pytest

from tests.bench.latency import main


def test_the_bench_prints_both_ways_of_labelling(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--slices", "5", "--quiet", "2", "--syntaxes", "JPEG 2000"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| JPEG 2000 | 5 | ")
