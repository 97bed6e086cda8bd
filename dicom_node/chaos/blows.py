"""A blow of the plan, dealt to the world."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.chaos.plan import Blow, Means
from dicom_node.chaos.world import RESERVE, World

#: By which the clock is set; together they leave it behind.
_HOURS = {"an hour ahead": 1, "two hours back": -2}


@dataclass
class Fist:
    """Deals blows; `wait` lets seconds pass while the world is kept up."""

    world: World
    wait: Callable[[float], None]

    def strike(self, blow: Blow) -> bool:
        """Deal one blow and, where it lasts, end it again; False when there was nothing to hit."""
        match blow.means:
            case Means.KILL:
                return self._kill(blow)
            case Means.FAULT:
                return self._at_the_moment(blow.at)
            case Means.PAUSE:
                return self._pause(blow)
            case Means.SILENCE | Means.TEAR:
                return self._cut(blow)
            case Means.FILL:
                return self._fill(blow)
            case Means.STEP:
                self.world.set_clock(self.world.clock_offset + _HOURS[blow.at] * 3600.0)
                return True

    def _kill(self, blow: Blow) -> bool:
        """The node's own processes come back by themselves; servers stay away for a while."""
        world = self.world
        if blow.at == "everything":
            targets = [*dict.fromkeys(name for _, name in world.programs()), *world.servers]
        else:
            targets = [blow.at]
        served = {name for name in targets if name in world.servers}
        world.down |= served
        hit = sum(world.signal(name, signal.SIGKILL) for name in targets)
        self.wait(blow.lasts if served else 0.0)
        world.down -= served
        world.keep()
        return hit > 0

    def _at_the_moment(self, moment: str) -> bool:
        """Lie in wait; whoever comes to that moment falls, however late. Nothing new where somebody is awaited."""
        armed = self.world.folder / "moments" / "armed" / moment
        if armed.exists():
            return False
        armed.touch()
        return True

    def unmet(self) -> Counter[str]:
        """Moments to which nobody has come; they are disarmed."""
        left = list((self.world.folder / "moments" / "armed").iterdir())
        for armed in left:
            armed.unlink(missing_ok=True)
        return Counter(str(Blow(Means.FAULT, armed.name, 0, 0)) for armed in left)

    def _pause(self, blow: Blow) -> bool:
        hit = self.world.signal(blow.at, signal.SIGSTOP)
        self.wait(blow.lasts)
        self.world.signal(blow.at, signal.SIGCONT)
        return hit > 0

    def _cut(self, blow: Blow) -> bool:
        wires = self.world.wires
        (wires.silence if blow.means == Means.SILENCE else wires.tear)(blow.at)
        self.wait(blow.lasts)
        wires.mend(blow.at)
        return True

    def _fill(self, blow: Blow) -> bool:
        pids = [pid for pid, _ in self.world.programs()]
        self.world.disk.leave(RESERVE / 2 if blow.at == "below the reserve" else 0.0, pids)
        self.wait(blow.lasts)
        self.world.disk.relieve([pid for pid, _ in self.world.programs()])
        return True
