"""Every process's last sign of life, and the database's own time: what `health` asks the ledger (`Ledger.pulses`)."""

from __future__ import annotations

from sqlalchemy import delete, func, select

from dicom_node.ledger.schema import Store, pulse
from dicom_node.study import Pulse


class Pulses:
    """Signs of life in the ledger's store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def enter(self, sign: Pulse) -> None:
        """A process lives; its earlier sign is forgotten."""
        statement = self.store.insert(pulse).values(sign.__dict__)
        newer = {"doing": sign.doing, "seen_at": sign.seen_at}
        with self.store.engine.begin() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=[pulse.c.process], set_=newer))

    def leave(self, process: str) -> None:
        """A process ended as it was told to; nobody need miss it."""
        with self.store.engine.begin() as connection:
            connection.execute(delete(pulse).where(pulse.c.process == process))

    def all(self) -> list[Pulse]:
        with self.store.engine.connect() as connection:
            rows = connection.execute(select(pulse).order_by(pulse.c.process)).all()
        return [Pulse(row.process, row.doing, row.seen_at) for row in rows]

    def database_time(self) -> float | None:
        """Seconds since the epoch by the database's own clock; None where it has none."""
        if self.store.engine.dialect.name != "postgresql":
            return None
        with self.store.engine.connect() as connection:
            return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())
