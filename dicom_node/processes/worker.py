"""A worker process: Celery's own, with our defaults, a watchdog, signs of life, and an end that hands back its work."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from celery import signals
from celery.platforms import SecurityWarning
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.logs import Complaint
from dicom_node.logs import configure as configure_logs
from dicom_node.patience import pause
from dicom_node.processes import notify
from dicom_node.processes.watchdog import Watchdog
from dicom_node.settings import Settings
from dicom_node.study import UNFIT
from dicom_node.tasks import DELIVER_QUEUE, LABEL_QUEUE, Bell, app, beat, connect, drain, hang_up, model

if TYPE_CHECKING:
    from dicom_node.model import Model

log = structlog.get_logger("worker")

T = TypeVar("T")

#: Exit code of a worker that ends itself (EX_SOFTWARE).
STALLED = 70
#: Longest pause between two tries to open what a worker needs, seconds.
_LONGEST_PAUSE = 30.0
#: Pools that run tasks in this process, where their beginning and end are heard.
_NEAR = ("solo", "thread")


def run_worker(settings: Settings, arguments: list[str]) -> None:
    """Celery's own command line, with our defaults in front: `dicom-node worker [CELERY OPTIONS]`.

    The solo pool keeps one loaded model per process and leaves CUDA alone; start several for several GPUs.
    """
    configure_logs()
    warnings.filterwarnings("ignore", category=SecurityWarning)  # a page on running as root; `up` has a line
    connect(settings)
    guard = Guard(settings)
    guard.listen()
    defaults = ["--pool", "solo", "--queues", f"{LABEL_QUEUE},{DELIVER_QUEUE}", "--loglevel", "warning"]
    alone = ["--without-gossip", "--without-mingle"]
    app.worker_main(["--quiet", "worker", *defaults, *alone, *arguments])


class Guard:
    """Listens to Celery's signals; a thread sends the beats, and ends the process when none is heard."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dog = Watchdog(settings.stall_seconds, settings.longest_task_seconds)
        self.name, self.near = "", True
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._model: Model | None = None
        self._told_to_end = False
        self._complaint = Complaint()

    def listen(self) -> None:
        for signal, hear in (
            (signals.celeryd_after_setup, self._named),
            (signals.worker_ready, self._ready),
            (signals.task_prerun, self._began),
            (signals.task_postrun, self._ended),
            (signals.worker_shutting_down, self._shutting_down),
            (signals.worker_shutdown, self._shut_down),
        ):
            signal.connect(hear, weak=False)

    @property
    def queue(self) -> str:
        return f"beat.{self.name}"

    def _named(self, sender: str, instance: Any, **_: Any) -> None:
        pool = instance.pool_cls.__module__.rpartition(".")[2]
        self.name, self.near = sender, pool in _NEAR
        self.dog.slots = 1 if pool == "solo" else instance.concurrency
        app.amqp.queues.select_add(self.queue)

    def _ready(self, **_: Any) -> None:
        if self.near and LABEL_QUEUE in app.amqp.queues.consume_from:
            threading.Thread(target=self._load, name="model", daemon=True).start()
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watcher.start()
        notify.ready()
        log.info("ready for work", worker=self.name)

    def _load(self) -> None:
        """The model, ahead of the first study."""
        self._model = self._waited_for(model)
        if self._model is not None:
            self._model.keep_trying(self._stop)

    def _waited_for(self, opened: Callable[[], T]) -> T | None:
        """What needs the ledger, which may be away when this process starts; None where it is told to end before."""
        attempt = 0
        while not self._stop.is_set():
            try:
                return opened()
            except (NodeError, SQLAlchemyError) as error:
                if self._complaint.is_new(reason := str(error.args[0])):
                    log.error("not ready for work; trying again", worker=self.name, reason=reason)
                attempt += 1
                self._stop.wait(pause(attempt, _LONGEST_PAUSE))
        return None

    def _began(self, task_id: str, task: Any, **_: Any) -> None:
        self.dog.heard() if task.name == beat.name else self.dog.began(task_id)

    def _ended(self, task_id: str, task: Any, **_: Any) -> None:
        if task.name != beat.name:
            self.dog.ended(task_id)

    def _shutting_down(self, **_: Any) -> None:
        self._told_to_end = True
        notify.stopping()
        drain()

    def _shut_down(self, **_: Any) -> None:
        self._stop.set()
        hang_up()
        if self._watcher is not None:
            self._watcher.join(5.0)

    def _watch(self) -> None:
        bell, every = Bell(app), self.settings.sign_seconds
        ledger = self._waited_for(lambda: Ledger(self.settings.ledger_url))
        if ledger is None:
            return
        signs = notify.Signs(ledger, self.name, every)
        while not self._stop.wait(every):
            if self.near and not self.dog.full:
                self.dog.sent(bell.beat(self.queue, self.settings.stall_seconds))
            if reason := self.dog.complaint():
                log.error("this worker ends itself, to be started again", worker=self.name, reason=reason)
                os._exit(STALLED)
            signs.give(self._doing())
        # a worker that Celery ends for an error keeps its last sign, and is missed
        if self._told_to_end:
            signs.leave()

    def _doing(self) -> str:
        if self._model is not None and self._model.trouble:
            return f"{UNFIT} {self._model.trouble}"
        if self._model is not None and self._model.loading:
            return "loading the model"
        busy = self.dog.busy_for
        return f"busy for {busy:.0f} s" if busy else "waiting for work"
