"""Pure: who may come in? An association request -> the peer it comes from, or a reason and what would admit it."""

from __future__ import annotations

from dataclasses import dataclass

from dicom_node.settings import Peer, Settings


@dataclass(frozen=True)
class Admission:
    """Let in as `peer`, or refused with the codes of PS3.8 Table 9-21 (result, source, reason)."""

    peer: Peer | None
    reason: str = ""
    remedy: str = ""
    codes: tuple[int, int, int] = (1, 1, 1)


#: rejected permanently, by the service user, because ...
_CALLED_NOT_RECOGNIZED = (1, 1, 7)
_CALLING_NOT_RECOGNIZED = (1, 1, 3)


def admit(calling_ae: str, called_ae: str, host: str, settings: Settings) -> Admission:
    """Check the called AE title, then the calling AE title with its host.

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
            return Admission(peer)
    if namesakes:
        homes = ", ".join(peer.host for peer in namesakes)
        return Admission(
            None,
            f"calling AE {calling!r} is known at {homes}, not at {host}",
            f'in [[peers]] {namesakes[0].name!r}: host = "{host}"',
            _CALLING_NOT_RECOGNIZED,
        )
    line = f'[[peers]] name = "{calling.lower()}", ae_title = "{calling}", host = "{host}", may = ["push"]'
    return Admission(None, f"calling AE {calling!r} is unknown", line, _CALLING_NOT_RECOGNIZED)
