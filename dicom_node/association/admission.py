"""Pure: who may come in? An association request -> the peer it comes from, or a reason and what would admit it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dicom_node.settings import Peer, Settings


@dataclass(frozen=True)
class Admission:
    """Let in as `peer`, or refused with the codes of PS3.8 Table 9-21 (result, source, reason)."""

    peer: Peer | None
    reason: str = ""
    remedy: str = ""
    codes: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class Caller:
    """Who asks for an association: AE titles without spaces around them, address, and whether it came over TLS."""

    calling_ae: str
    called_ae: str
    host: str
    secure: bool = True


#: rejected permanently, by the service user, because ...
_CALLED_NOT_RECOGNIZED = (1, 1, 7)
_CALLING_NOT_RECOGNIZED = (1, 1, 3)
#: ... without a reason that the standard has a number for.
_NO_REASON = (1, 1, 1)
#: rejected transiently, by the service provider, because a local limit is exceeded.
_LIMIT_EXCEEDED = (2, 3, 2)


def admit(calling_ae: str, called_ae: str, host: str, settings: Settings, *, secure: bool = True) -> Admission:
    """Check the called AE title, then the calling AE title with its host, then whether it had to come over TLS.

    An AE title that is known at another host is refused: anybody can write a known title into a request.
    """
    calling, called = calling_ae.strip(), called_ae.strip()
    if called != settings.ae_title:
        return Admission(
            None,
            f"called {called!r}, we are {settings.ae_title!r}",
            f'set the called AE title at {calling!r} to {settings.ae_title!r}, or here ae_title = "{called}"',
            _CALLED_NOT_RECOGNIZED,
        )
    namesakes = [peer for peer in settings.peers if peer.ae_title == calling]
    for peer in namesakes:
        if peer.at(host):
            return Admission(peer) if secure or not peer.tls else _in_plain(peer, settings)
    if namesakes:
        homes = ", ".join(peer.host + ("" if peer.is_somewhere else " (cannot be looked up)") for peer in namesakes)
        return Admission(
            None,
            f"calling AE {calling!r} is known at {homes}, not at {host}",
            f'in [[peers]] {namesakes[0].name!r}: host = "{host}"',
            _CALLING_NOT_RECOGNIZED,
        )
    named = {"name": calling.lower(), "ae_title": calling, "host": host}
    lines = ["[[peers]]", *(f"{key} = {json.dumps(value)}" for key, value in named.items()), 'may = ["push"]']
    return Admission(None, f"calling AE {calling!r} is unknown", "\n".join(lines), _CALLING_NOT_RECOGNIZED)


def _in_plain(peer: Peer, settings: Settings) -> Admission:
    port = settings.tls.port if settings.tls else 0
    return Admission(
        None,
        f"{peer.ae_title!r} came without TLS",
        f"at {peer.ae_title!r} set port {port} and TLS, or in [[peers]] {peer.name!r}: tls = false",
        _NO_REASON,
    )


def crowded(peer: Peer, host: str, others: Sequence[str], settings: Settings) -> Admission:
    """A known peer comes in, unless there are too many associations already.

    Args:
        others: the hosts of all associations at hand.
    """
    for setting, limit, count in (
        ("associations", settings.associations, len(others)),
        ("associations_per_host", settings.associations_per_host, others.count(host)),
    ):
        if count >= limit:
            reason = f"{setting} = {limit} is reached"
            return Admission(None, reason, f"a larger {setting}; the peer tries again by itself", _LIMIT_EXCEEDED)
    return Admission(peer)
