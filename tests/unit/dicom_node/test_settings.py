"""A wrong setting says which line, why, and what would be right."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.cli import app
from dicom_node.desk.shell import NO_ANSWER
from dicom_node.errors import ConfigurationError
from dicom_node.mistakes import line_of
from dicom_node.settings import Settings, load_settings

GOOD = """ae_title = "ANATOMY"
port = 11112
quiet_seconds = 30

[[peers]]
name = "ct1"
ae_title = "CT1"
host = "10.1.0.0/16"
may = ["push"]
quiet_seconds = 5

[[peers]]
name = "pacs"
ae_title = "PACS"
host = "pacs.example.org"
port = 104
may = ["reports"]
"""


def load(text: str, folder: Path) -> Settings:
    path = folder / "node.toml"
    path.write_text(text)
    return load_settings(path)


def test_a_good_file_reads_as_written(tmp_path: Path):
    settings = load(GOOD, tmp_path)
    assert settings.quiet_of("ct1") == 5
    assert settings.quiet_of("pacs") == settings.quiet_of("stranger") == 30
    assert [peer.name for peer in settings.receivers_of_reports] == ["pacs"]
    assert settings.ledger_url.startswith("sqlite:///")


@pytest.mark.parametrize(
    ("wrong", "line", "told"),
    [
        (("port = 11112", "port = 70000"), 2, "less than or equal to 65535"),
        (("port = 11112", 'port = "x"'), 2, "got 'x'"),
        (('ae_title = "CT1"', 'ae_title = "A TITLE THAT IS TOO LONG"'), 7, "1 to 16 characters"),
        (('host = "10.1.0.0/16"', 'host = "10.1.0.0/99"'), 8, "a host is an address"),
        (("quiet_seconds = 30", 'broker = "redis://127.0.0.1:6379/x"'), 3, "write it as redis://HOST:6379/0"),
        (('may = ["push"]', 'may = "push"'), 9, """write a list, as may = ["..."] (got 'push')"""),
        (('may = ["push"]', 'may = ["pull"]'), 9, "'push', 'reports' or 'audit'"),
        (("quiet_seconds = 5", "quiet_seconds = -5"), 10, "greater than 0"),
        (("quiet_seconds = 5", "quit_seconds = 5"), 10, "no such setting; known: name, ae_title"),
        (
            ("port = 104\n", "port = 104\nretention_days = 9\n"),
            17,
            "write it above the first [[peers]]",
        ),
        (("port = 104\n", ""), 12, "needs one host and a port"),
        (('name = "pacs"', 'name = "ct1"'), 5, "two peers are called 'ct1'"),
        (("quiet_seconds = 30", 'destinations = ["ct1"]'), 3, "is no peer with may"),
        (("quiet_seconds = 30", "quiet = 30"), 3, "no such setting; known: ae_title"),
        (("quiet_seconds = 30", 'broker = "localhost:6379"'), 3, "write it as redis://HOST:6379/0"),
        (("quiet_seconds = 30", 'broker = "redis://127.0.0.1:port/0"'), 3, "write it as redis://HOST:6379/0"),
        (("quiet_seconds = 30", 'device = "gpu"'), 3, "write auto (the first GPU, else the CPU), cpu, cuda"),
        (("quiet_seconds = 30", 'ledger = "mysql://h/db"'), 3, "postgresql://USER@HOST/DATABASE; no other database"),
        (("quiet_seconds = 30", 'ledger = "sqlite://var/x"'), 3, "sqlite:////FILE"),
        (('may = ["push"]', 'may = ["pull"]'), 9, "peer 'ct1'.may: Input should be"),
        (('name = "ct1"\n', ""), 5, "peer 'CT1'.name: Field required"),
        (('"pacs.example.org"', '"10.1.20.0/24"'), 12, "peer 'pacs': a peer that gets reports needs one host: 10.1.20"),
    ],
)
def test_every_wrong_setting_is_named_with_its_line(tmp_path: Path, wrong, line, told):
    assert wrong[0] in GOOD
    with pytest.raises(ConfigurationError) as error:
        load(GOOD.replace(wrong[0], wrong[1], 1), tmp_path)
    assert f"node.toml:{line}:" in str(error.value)
    assert told in str(error.value)


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_settings(path).quiet_seconds == 30
    path.write_bytes(GOOD.replace("port = 104", "port = 104  # R\u00f6ntgen").encode("cp1252"))
    with pytest.raises(ConfigurationError, match=r"node.toml:16: not UTF-8: save the file as UTF-8"):
        load_settings(path)
    path.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(ConfigurationError, match=r"node.toml:1: not UTF-8"):
        load_settings(path)
    told = CliRunner().invoke(app, ["--config", str(path), "health"])
    assert (told.exit_code, type(told.exception)) == (NO_ANSWER, SystemExit)


def test_one_port_for_plain_and_tls_is_refused(tmp_path: Path) -> None:
    tls = 'tls = {certificate = "c", key = "k", ca = "a", port = 11112}'
    with pytest.raises(ConfigurationError, match=r"node.toml:3: tls: port = 11112 is the plain `port` too.*2762"):
        load(GOOD.replace("quiet_seconds = 30", tls), tmp_path)
    assert load(GOOD.replace("quiet_seconds = 30", tls.replace("11112", "2762")), tmp_path).tls


def test_one_bracket_too_few_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"write \[\[peers\]\], with two brackets"):
        load('[peers]\nname = "pacs"\n', tmp_path)


@pytest.mark.parametrize("host", ["10.1.2.3", "10.1.2.3/32"])
def test_two_peers_that_admission_cannot_tell_apart_are_refused(tmp_path: Path, host: str) -> None:
    peer = '[[peers]]\nname = "{}"\nae_title = "{}"\nhost = "{}"\nport = {}\n'
    first = peer.format("pacs", "PACS", "10.1.2.3", 104)
    with pytest.raises(ConfigurationError) as error:
        load(first + peer.format("vna", "PACS", host, 105), tmp_path)
    assert "'pacs' and 'vna' are both PACS at" in str(error.value)
    assert "one [[peers]] table with the rights of both, or set different AE titles" in str(error.value)
    for ae_title, elsewhere in (("VNA", "10.1.2.3"), ("PACS", "10.1.2.4")):
        assert len(load(first + peer.format("vna", ae_title, elsewhere, 105), tmp_path).peers) == 2


def test_a_password_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        load('ledger = "mysql://node:secret@h/db"\n', tmp_path)
    assert "got 'mysql://...@h/db'" in str(error.value)


def test_all_wrong_settings_are_told_at_once(tmp_path: Path):
    with pytest.raises(ConfigurationError) as error:
        load(GOOD.replace("11112", "0x").replace("= 30", "= 0"), tmp_path)
    assert "not TOML" in str(error.value)
    with pytest.raises(ConfigurationError) as error:
        load(GOOD.replace("11112", "-1").replace("= 30", "= 0"), tmp_path)
    assert len(str(error.value).splitlines()) == 2


def test_the_environment_overrules_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DICOM_NODE_PORT", "4711")
    assert load(GOOD, tmp_path).port == 4711
    monkeypatch.setenv("DICOM_NODE_PORT", "many")
    with pytest.raises(ConfigurationError, match="environment variable DICOM_NODE_PORT"):
        load(GOOD, tmp_path)


def test_a_missing_file_is_said(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(tmp_path / "absent.toml")


def test_an_unknown_peer_lists_the_known(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="known peers: ct1, pacs"):
        load(GOOD, tmp_path).peer("mr1")


@pytest.mark.parametrize(
    ("ledger", "file"),
    [
        ("sqlite:////var/x.sqlite", "/var/x.sqlite"),
        ("sqlite:///x.sqlite?timeout=30", "x.sqlite"),
        ("sqlite:///file:x?mode=ro&uri=true", None),
        ("sqlite://", None),
        ("postgresql+psycopg://u:p@h/db", None),
    ],
)
def test_the_file_of_a_ledger(ledger: str, file: str | None):
    assert Settings(ledger=ledger).ledger_file == (Path(file) if file else None)


def test_line_of_finds_nested_settings():
    assert line_of(GOOD, ("peers", 1, "port")) == 16
    assert line_of(GOOD, ("peers", 0)) == 5
    assert line_of(GOOD, ()) == 1
