"""How destinations answer, over all processes: the circuit breaker and the limit of what is sent to one at a time.

Part of the ledger's deliveries. A destination that has failed too often in a row rests; nothing is sent to it. After
the rest one delivery at a time is let through. The first that is stored ends this, and all that waits is due at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Select, and_, func, select, true, update
from sqlalchemy.engine import Connection

from dicom_node.ledger.schema import Store, delivery, destination, in_turn
from dicom_node.study import Delivery


@dataclass(frozen=True)
class Health:
    """How a destination answers.

    Attributes:
        failures: in a row.
        rests_until: seconds since the epoch; 0.0 where it has answered since its last rest.
        detail: why the last attempt failed.
    """

    name: str
    failures: int
    rests_until: float
    detail: str


class Destinations:
    """Destinations in the ledger's store; the methods work within the transaction of the delivery that asks."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def has_room(self, connection: Connection, name: str, parallel: int) -> bool:
        """May one more delivery go there now? Until the transaction ends, no other process is told so."""
        connection.execute(self.store.insert(destination).values(name=name).on_conflict_do_nothing())
        locked = select(destination.c.rests_until).where(destination.c.name == name).with_for_update()
        rests_until, now = connection.execute(locked).scalar_one(), self.store.clock()
        under_way = and_(delivery.c.destination == name, delivery.c.lease_until > now)
        busy = connection.execute(select(func.count()).select_from(delivery).where(under_way)).scalar_one()
        return bool(rests_until <= now and busy < (1 if rests_until else parallel))

    def stored(self, connection: Connection, name: str) -> None:
        """It has stored something: it is well, and what waits because of its failures is due."""
        ailing = and_(destination.c.name == name, destination.c.failures > 0)
        rested = connection.execute(select(destination.c.rests_until).where(ailing)).scalar()
        connection.execute(update(destination).where(ailing).values(failures=0, rests_until=0.0, detail=""))
        if rested:
            waiting = and_(delivery.c.destination == name, delivery.c.state == Delivery.WAITING)
            connection.execute(update(delivery).where(in_turn(waiting)).values(next_at=0.0, rung_at=0.0))

    def failed(self, connection: Connection, name: str, reason: str, rest: Callable[[int], float]) -> None:
        """It could not be reached, or told us to come again.

        Args:
            rest: failures in a row -> seconds that it rests.
        """
        key = destination.c.name == name
        counted = {"failures": destination.c.failures + 1, "detail": reason}
        connection.execute(update(destination).where(key).values(counted))
        failures = connection.execute(select(destination.c.failures).where(key)).scalar_one()
        if seconds := rest(failures):
            connection.execute(update(destination).where(key).values(rests_until=self.store.clock() + seconds))

    def wake(self, connection: Connection, name: str | None = None) -> None:
        """A person's word: the rest of one destination, or of all, is over; one delivery at a time tries it."""
        now = self.store.clock()
        resting = and_(destination.c.rests_until > now, true() if name is None else destination.c.name == name)
        connection.execute(update(destination).where(resting).values(rests_until=now))

    def resting(self) -> Select[tuple[str]]:
        """Names of those that nothing is sent to now."""
        return select(destination.c.name).where(destination.c.rests_until > self.store.clock())

    def ailing(self) -> list[Health]:
        """Those whose last attempt failed."""
        wanted = select(destination).where(destination.c.failures > 0).order_by(destination.c.name)
        with self.store.engine.connect() as connection:
            return [Health(**row) for row in connection.execute(wanted).mappings()]
