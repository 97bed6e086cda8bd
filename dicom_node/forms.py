"""Pure: how single settings are written; a ValueError says what would be right."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit


def ae_title(value: str) -> str:
    """PS3.5 6.2, AE: 1 to 16 characters of the default repertoire, no backslash, no leading or trailing space."""
    if not re.fullmatch(r"[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?", value):
        raise ValueError("an AE title has 1 to 16 characters, no backslash, no space at its ends")
    return value


def host(value: str) -> str:
    if not is_address(value) and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", value):
        raise ValueError("a host is an address, a network as 10.1.0.0/16, a host name, or any")
    return value


def is_address(host: str) -> bool:
    """Is it an address or a network, no name?"""
    try:
        ipaddress.ip_network(host, strict=False)
    except ValueError:
        return False
    return True


def one_way(host: str) -> str:
    """Hosts that are the same, written the same."""
    return str(ipaddress.ip_network(host, strict=False)) if is_address(host) else host.lower()


def device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError("write auto (the first GPU, else the CPU), cpu, cuda, cuda:1 ..., xpu or mps")
    return value


def ledger(url: str | None) -> str | None:
    parts = urlsplit(url or "sqlite://")
    here = re.fullmatch(r"sqlite(\+pysqlite)?", parts.scheme) and not parts.netloc
    if not here and not (re.fullmatch(r"postgresql(\+psycopg)?", parts.scheme) and parts.port != 0):
        raise ValueError("write it as sqlite:////FILE or postgresql://USER@HOST/DATABASE; no other database will do")
    return url


def broker(url: str | None) -> str | None:
    if not url:
        return url
    parts = urlsplit(url)
    try:
        known = parts.scheme in ("redis", "rediss", "redis+socket") and (parts.port or True)
        known = known and (parts.scheme == "redis+socket" or int(parts.path.strip("/") or 0) >= 0)
    except ValueError:
        known = False
    if not known:
        raise ValueError("write it as redis://HOST:6379/0 (rediss:// over TLS)")
    return url
