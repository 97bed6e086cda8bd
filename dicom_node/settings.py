"""Settings: one TOML file, overruled by environment variables `DICOM_NODE_*`. Nothing else reads either.

The file is the one given with `--config`, else named by `DICOM_NODE_CONFIG`, else `dicom-node.toml` in the working
folder, else `/etc/dicom-node/dicom-node.toml`. Without any, the embedded defaults serve one machine.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from dicom_node import forms
from dicom_node.errors import ConfigurationError
from dicom_node.mistakes import explained, no_settings

CONFIG_VARIABLE = "DICOM_NODE_CONFIG"
#: What mends settings of which nobody gets reports (`Settings.is_unaddressed`).
ADDRESS = (
    'write may = ["reports"] for an archive; or, where nobody is to get reports, set destinations = [], and images go '
    "after retention_days"
)
_PLACES = (Path("dicom-node.toml"), Path("/etc/dicom-node/dicom-node.toml"))


AETitle = Annotated[str, AfterValidator(forms.ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Durability = Literal["each", "group"]


class Tls(BaseModel):
    """Our certificate and whose certificates we trust; the files are read again when they change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: PEM file with our certificate and the ones between it and its CA; we show it to peers, called or calling.
    certificate: Path
    #: PEM file with its private key, without a password, readable by the node's user only.
    key: Path
    #: PEM file with the certificates of the CAs whose peers we trust: the hospital's own, never a public one.
    ca: Path
    #: Port for associations over TLS, beside the plain one; 2762 is the registered one.
    port: Annotated[int, Field(ge=0, le=65535)] = 2762
    #: The certificate of a peer that we call must name its `host`. False for devices whose certificate does not.
    verify_names: bool = True


class Peer(BaseModel):
    """A DICOM application that we know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: What people call it; used on the command line and in logs.
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=64)
    #: The AE title that it calls itself, and that we call.
    ae_title: AETitle
    #: Address, network, host name, or `any` for a peer that only pushes and whose address changes.
    host: Annotated[str, AfterValidator(forms.host)]
    #: Where it listens; needed to echo it and to send to it.
    port: Port | None = None
    #: Speaks TLS both ways: in plain it is refused, and we call it over TLS only. Needs a [tls] table.
    tls: bool = False
    #: `push`: may send images to us. `reports`: gets our reports. `audit`: may dispute and correct them.
    may: frozenset[Literal["push", "reports", "audit"]] = frozenset({"push"})
    #: Ask for storage commitment of what it is sent; only then is a delivery done. It answers to our own port.
    commitment: bool = False
    #: Ask it before every delivery (C-FIND) whether the study still is the same Patient ID's there; hold it where not.
    check_patient: bool = False
    #: Send the evidence sheet, a picture, beside every report that this peer gets.
    sheet: bool = True
    #: Ask it (C-FIND) how many images of a study it holds: when we hold as many, the study is complete.
    counts: bool = False
    #: Send a rejection note (IHE IOCM) on every superseded report and sheet; archives that know such notes hide these.
    reject_superseded: bool = False
    #: Deliveries that may be under way to it at the same time, over all workers.
    parallel: Annotated[int, Field(ge=1)] = 2
    #: Seconds that an association to it stays open for the next object; 0: it is closed after every one.
    idle_seconds: Annotated[float, Field(ge=0)] = 5.0
    #: Seconds without a new image after which a study from this peer is complete; unset: the node's own.
    quiet_seconds: Seconds | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Peer:
        for called, what in (("reports" in self.may, "gets reports"), (self.counts, "is asked for counts")):
            if called and "/" in self.host:
                raise ValueError(f"a peer that {what} needs one host: {self.host} is a network, write its own address")
            if called and (self.port is None or self.host == "any"):
                raise ValueError(f"a peer that {what} needs one host and a port")
        return self

    def at(self, host: str) -> bool:
        """Does a connection from this address come from this peer?"""
        if self.host == "any":
            return True
        address = ipaddress.ip_address(host)
        try:
            return address in ipaddress.ip_network(self.host, strict=False)
        except ValueError:
            return str(address) in _addresses(self.host)

    @property
    def is_somewhere(self) -> bool:
        """Is its host an address, or a name that can be looked up now? Asks the name server."""
        return self.host == "any" or forms.is_address(self.host) or bool(_addresses(self.host))


def _addresses(name: str) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


class Settings(BaseSettings):
    """All settings; the defaults serve one machine with an embedded broker."""

    model_config = SettingsConfigDict(env_prefix="DICOM_NODE_", extra="forbid", frozen=True)

    #: Our AE title: what a scanner must call.
    ae_title: AETitle = "ANATOMY"
    #: Address that the receiver listens on; 0.0.0.0 is every interface.
    bind: str = "0.0.0.0"
    #: Port that the receiver listens on.
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    #: Folder for spool, reports and the default ledger; on a disk that survives.
    home: Path = Path("dicom-node-data")
    #: SQLAlchemy URL of the ledger; unset: SQLite in `home`. Several machines need PostgreSQL.
    ledger: Annotated[str | None, AfterValidator(forms.ledger)] = None
    #: Redis URL of the doorbell; unset: `dicom-node up` starts an embedded one that may lose anything.
    broker: Annotated[str | None, AfterValidator(forms.broker)] = None
    #: Bundle folder, or CLIP checkpoint for zero-shot use; unset: the bundle in the package.
    bundle: str | None = None
    #: auto, cpu, cuda, cuda:1 ...
    device: Annotated[str, AfterValidator(forms.device)] = "auto"
    #: Seconds without a new image after which a study is complete.
    quiet_seconds: Seconds = 60.0
    #: Seconds without a new image after which a peer with `counts` is asked; before, its count grows as ours does.
    count_seconds: Seconds = 5.0
    #: Seconds between two looks of the watcher.
    sweep_seconds: Seconds = 1.0
    #: Seconds after which an unanswered bell is rung again.
    ring_again_seconds: Seconds = 30.0
    #: Seconds that a worker's lease lasts without renewal.
    lease_seconds: Seconds = 30.0
    #: Attempts at labelling one study before it is laid aside.
    attempts: Annotated[int, Field(ge=1)] = 3
    #: Disk for planes that are decoded while images still come in, MiB; 0: decoding waits until the study is complete.
    planes_mib: Annotated[int, Field(ge=0)] = 4096
    #: Hours after which such planes are forgotten; they are gone sooner, when their study has its reports.
    planes_hours: Annotated[float, Field(gt=0)] = 24.0
    #: Processes of a worker that decode images.
    decoders: Annotated[int, Field(ge=1)] = 2
    #: Seconds that decoding one frame may take; an image whose decoder takes longer is left out.
    decode_seconds: Seconds = 60.0
    #: MiB that the frames of one image may unpack to, and that decoding it may take.
    decode_mib: Annotated[int, Field(ge=64)] = 4096
    #: Seconds that a process told to end has for what it does; what is not done then is handed back.
    drain_seconds: Seconds = 20.0
    #: Seconds after which a worker that takes nothing from the broker, or a process without a sign, is started anew.
    stall_seconds: Seconds = 60.0
    #: Seconds after which a worker is started anew that is still busy with one study or delivery.
    longest_task_seconds: Seconds = 7200.0
    #: Longest pause between two attempts at a delivery, and longest rest of a destination, seconds.
    longest_pause: Seconds = 300.0
    #: Failed deliveries in a row after which their destination rests; then one at a time tries it until one is stored.
    failures_before_rest: Annotated[int, Field(ge=1)] = 3
    #: Room that stays free on the spool's disk, MiB; below it a push is answered 0xA700.
    reserve_mib: Annotated[int, Field(ge=0)] = 1024
    #: When a received object is on the disk. `each`: before its 0x0000. `group`: soon after; a power cut may lose the
    #: last 64 acknowledged objects of every receiver, a killed process loses none. For disks that are slow to sync.
    durability: Durability = "each"
    #: Largest object that is taken, MiB; a peer that sends more is cut off.
    instance_limit_mib: Annotated[int, Field(ge=1)] = 4096
    #: Receiver processes behind the one port; unset: `dicom-node up` starts two where there are two processors.
    receivers: Annotated[int, Field(ge=1, le=64)] | None = None
    #: Receive C-STORE past pynetdicom's data sets: less work, and memory that is flat in the size of objects.
    #: False: all by pynetdicom, should an update of it ever break our way.
    fast_path: bool = True
    #: Days for which the images of a finished study stay in the spool; `inf`: for ever. Reports always stay, sheets
    #: go with the images once they have arrived, unless a peer has `reject_superseded`.
    retention_days: Annotated[float, Field(gt=0)] = 30.0
    #: Room above the reserve, MiB, below which images of sent studies go before their time, the oldest first.
    purge_margin_mib: Annotated[int, Field(ge=0)] = 1024
    #: Associations at a time, of each receiver.
    associations: Annotated[int, Field(ge=1)] = 64
    #: Associations of one host at a time, of each receiver.
    associations_per_host: Annotated[int, Field(ge=1)] = 32
    #: Seconds that a silent peer is kept; 0x0000 within this time or the association ends.
    network_timeout: Seconds = 60.0
    #: Seconds from connection to the whole association request, TLS handshake included.
    request_timeout: Seconds = 10.0
    #: Certificates for associations over TLS; unset: no TLS. Write it as a table: [tls].
    tls: Tls | None = None
    #: Who may call us, and whom we call: a table [[peers]] for each.
    peers: tuple[Peer, ...] = ()
    #: Peers by name that get every report; unset: every peer that may get reports. `[]`: nobody, and a labelled study
    #: is finished. Where it is unset and no peer may get reports, images stay for ever.
    destinations: tuple[str, ...] | None = None

    @field_validator("tls")
    @classmethod
    def _beside_the_plain_one(cls, tls: Tls | None, info: ValidationInfo) -> Tls | None:
        if tls is not None and tls.port and tls.port == info.data.get("port"):
            raise ValueError(
                f"port = {tls.port} is the plain `port` too, and each would take half of the other's callers: "
                "set another, 2762 is the registered one"
            )
        return tls

    @field_validator("peers")
    @classmethod
    def _distinct(cls, peers: tuple[Peer, ...]) -> tuple[Peer, ...]:
        names = [peer.name for peer in peers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two peers are called {twice[0]!r}; every peer needs a name of its own")
        return peers

    @field_validator("peers")
    @classmethod
    def _told_apart(cls, peers: tuple[Peer, ...]) -> tuple[Peer, ...]:
        """Admission knows a caller by its AE title and host, and takes the first that fits."""
        first: dict[tuple[str, str], str] = {}
        for peer in peers:
            other = first.setdefault((peer.ae_title, forms.one_way(peer.host)), peer.name)
            if other != peer.name:
                raise ValueError(
                    f"{other!r} and {peer.name!r} are both {peer.ae_title} at {peer.host}: callers are all taken for "
                    f"{other!r}; make it one [[peers]] table with the rights of both, or set different AE titles"
                )
        return peers

    @field_validator("peers")
    @classmethod
    def _with_certificates(cls, peers: tuple[Peer, ...], info: ValidationInfo) -> tuple[Peer, ...]:
        wanting = next((peer.name for peer in peers if peer.tls), None)
        if wanting and info.data.get("tls", True) is None:
            raise ValueError(f"peer {wanting!r} has tls = true: add a [tls] table with certificate, key and ca")
        return peers

    @field_validator("destinations")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        able = sorted(peer.name for peer in info.data.get("peers", ()) if "reports" in peer.may)
        for name in names or ():
            if name not in able:
                raise ValueError(f'{name!r} is no peer with may = ["reports"]; such peers: {", ".join(able) or "none"}')
        return names

    @property
    def ledger_url(self) -> str:
        return self.ledger or f"sqlite:///{self.home / 'ledger.sqlite'}"

    @property
    def ledger_file(self) -> Path | None:
        """Where an SQLite ledger lies; None for a ledger on a server."""
        scheme, _, rest = self.ledger_url.partition(":///")
        path = rest.partition("?")[0]
        return Path(path) if scheme.startswith("sqlite") and path and not path.startswith((":", "file:")) else None

    @property
    def receivers_of_rejections(self) -> tuple[str, ...]:
        """Names of the peers that get notes on what is superseded."""
        return tuple(peer.name for peer in self.receivers_of_reports if peer.reject_superseded)

    @property
    def receivers_of_sheets(self) -> tuple[str, ...]:
        """Names of the peers that get the evidence sheet beside a report."""
        return tuple(peer.name for peer in self.receivers_of_reports if peer.sheet)

    @property
    def receivers_of_reports(self) -> tuple[Peer, ...]:
        chosen = self.destinations
        return tuple(p for p in self.peers if "reports" in p.may and (chosen is None or p.name in chosen))

    @property
    def is_unaddressed(self) -> bool:
        """Does nobody get reports, and has nobody said that it is to be so? Images stay for ever then."""
        return self.destinations is None and not self.receivers_of_reports

    @property
    def addressees(self) -> str:
        """Who gets reports, in words."""
        nobody = "nobody, and images stay for ever" if self.is_unaddressed else "nobody (destinations = [])"
        return ", ".join(peer.name for peer in self.receivers_of_reports) or nobody

    def peer(self, name: str) -> Peer:
        """The peer of that name; ConfigurationError lists those there are."""
        for peer in self.peers:
            if peer.name == name:
                return peer
        known = ", ".join(peer.name for peer in self.peers) or "none"
        raise ConfigurationError(
            f"no peer is called {name!r}; known peers: {known}. Add a [[peers]] table to the file."
        )

    def quiet_of(self, peer_name: str) -> float:
        """Quiet time of a peer, seconds."""
        found = next((peer for peer in self.peers if peer.name == peer_name), None)
        return found.quiet_seconds if found and found.quiet_seconds else self.quiet_seconds

    @property
    def sign_seconds(self) -> float:
        """Seconds between two signs of life; whoever waits for them waits for several."""
        return min(5.0, self.stall_seconds / 4)

    def settled_after(self, peer_name: str) -> float:
        """Seconds of silence after which a series of a growing study is scored ahead: a quarter of the quiet time."""
        return self.quiet_of(peer_name) / 4


_KNOWN = {
    "": tuple(Settings.model_fields),
    "peers": tuple(Peer.model_fields),
    "tls": tuple(Tls.model_fields),
}


def strange_variables() -> list[str]:
    """What stands in the environment in vain."""
    return no_settings((*Settings.model_fields, "config"))


def find_config(given: Path | None) -> Path | None:
    """The file that counts: given, named in the environment, or at one of the usual places."""
    named = given or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    return named or next((place for place in _PLACES if place.is_file()), None)


def load_settings(given: Path | None = None) -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: every wrong setting with its line, why it is wrong and what would be right.
    """
    path = find_config(given)
    text = _read(path) if path else ""

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (env_settings, InitSettingsSource(settings_cls, tomllib.loads(text)))

    try:
        return FromFile()
    except ValidationError as error:
        raise ConfigurationError(explained(error.errors(), path, text, _KNOWN)) from error


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")  # Windows' editors begin a file with a byte order mark
        tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{line}: not UTF-8: save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    return text
