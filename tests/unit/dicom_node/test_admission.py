"""Nobody unknown gets in, and the refusal says what would admit."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.association.admission import admit, crowded
from dicom_node.settings import Peer, Settings, Tls

SETTINGS = Settings(
    peers=(
        Peer(name="ct1", ae_title="CT1", host="10.1.0.0/16"),
        Peer(name="mr1", ae_title="MR1", host="10.2.0.7"),
        Peer(name="roaming", ae_title="ROAM", host="any"),
        Peer(name="home", ae_title="HOME", host="localhost"),
    )
)


@pytest.mark.parametrize(
    ("calling", "host", "peer"),
    [
        ("CT1", "10.1.200.3", "ct1"),
        ("CT1 ", "10.1.0.1", "ct1"),
        ("MR1", "10.2.0.7", "mr1"),
        ("ROAM", "203.0.113.9", "roaming"),
        ("HOME", "127.0.0.1", "home"),
    ],
)
def test_known_peers_come_in(calling, host, peer):
    admission = admit(calling, "ANATOMY", host, SETTINGS)
    assert admission.peer is not None
    assert admission.peer.name == peer


@pytest.mark.parametrize(
    ("calling", "called", "host", "codes", "remedy"),
    [
        ("CT1", "WRONG", "10.1.0.1", (1, 1, 7), "set the called AE title at 'CT1' to 'ANATOMY'"),
        ("CT1", "anatomy", "10.1.0.1", (1, 1, 7), "ae_title"),
        ("CT1", "ANATOMY", "10.9.0.1", (1, 1, 3), 'host = "10.9.0.1"'),
        ("US1", "ANATOMY", "10.1.0.1", (1, 1, 3), 'ae_title = "US1"\nhost = "10.1.0.1"\nmay = ["push"]'),
    ],
)
def test_everybody_else_is_told_why_and_what_would_admit(calling, called, host, codes, remedy):
    admission = admit(calling, called, host, SETTINGS)
    assert admission.peer is None
    assert admission.codes == codes
    assert remedy in admission.remedy


def test_a_home_that_cannot_be_looked_up_is_told_in_the_rejection(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dicom_node.settings._addresses", lambda _: set())
    settings = Settings(peers=(Peer(name="ct1", ae_title="CT1", host="ct1.invalid"),))
    admission = admit("CT1", "ANATOMY", "10.1.0.1", settings)
    assert admission.reason == "calling AE 'CT1' is known at ct1.invalid (cannot be looked up), not at 10.1.0.1"
    assert 'host = "10.1.0.1"' in admission.remedy


@given(st.text(max_size=16), st.ip_addresses().map(str))
def test_no_title_and_address_outside_the_settings_is_let_in(calling, host):
    admission = admit(calling, "ANATOMY", host, SETTINGS)
    known = calling.strip() in {"CT1", "MR1", "ROAM", "HOME"}
    assert admission.peer is None or known


def test_a_peer_with_tls_comes_over_tls_only(tmp_path):
    tls = Tls(certificate=tmp_path, key=tmp_path, ca=tmp_path, port=2762)
    settings = Settings(tls=tls, peers=(Peer(name="ct1", ae_title="CT1", host="10.1.0.1", tls=True),))
    assert admit("CT1", "ANATOMY", "10.1.0.1", settings, secure=True).peer is not None
    refused = admit("CT1", "ANATOMY", "10.1.0.1", settings, secure=False)
    assert (refused.peer, refused.codes) == (None, (1, 1, 1))
    assert "set port 2762 and TLS" in refused.remedy


def test_a_full_house_is_a_passing_reason():
    settings = Settings(associations=3, associations_per_host=2)
    peer = SETTINGS.peers[0]
    assert crowded(peer, "h", ["h", "other"], settings).peer is peer
    assert crowded(peer, "h", ["h", "h"], settings).reason == "associations_per_host = 2 is reached"
    full = crowded(peer, "h", ["a", "b", "c"], settings)
    assert (full.peer, full.reason, full.codes) == (None, "associations = 3 is reached", (2, 3, 2))


def test_the_lines_that_would_admit_a_stranger_are_settings_as_they_stand():
    lines = admit('MR "2"', "ANATOMY", "10.0.0.9", SETTINGS).remedy
    (peer,) = tomllib.loads(lines)["peers"]
    assert peer == {"name": 'mr "2"', "ae_title": 'MR "2"', "host": "10.0.0.9", "may": ["push"]}
