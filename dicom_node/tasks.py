"""The Celery app. A task takes an id, claims its work in the ledger, and may run twice.

Redis is a doorbell: a lost message is rung again by `watch`, a doubled one finds nothing to do. So there is no result
backend, and nothing here needs Redis to keep anything.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from dicom_node.errors import ConfigurationError
from dicom_node.settings import Settings, load_settings

if TYPE_CHECKING:
    from dicom_node.deliver import Deliverer
    from dicom_node.model import Model
    from dicom_node.pipeline import Pipeline

log = structlog.get_logger("tasks")

LABEL_QUEUE, DELIVER_QUEUE = "label", "deliver"

#: Priority of messages that wait for all others; Redis serves 0 first.
_WHEN_IDLE = 9

app = Celery("dicom_node")
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": 600,
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        "socket_connect_timeout": 2,
        "socket_timeout": 10,
        "socket_keepalive": True,
    },
    task_routes={
        "dicom_node.label_study": {"queue": LABEL_QUEUE},
        "dicom_node.prepare": {"queue": LABEL_QUEUE, "priority": _WHEN_IDLE},
        "dicom_node.deliver": {"queue": DELIVER_QUEUE},
    },
)


def connect(settings: Settings) -> Celery:
    """Point the app at the broker of the settings.

    Raises:
        ConfigurationError: none is set.
    """
    if settings.broker is None:
        raise ConfigurationError(
            'no broker: set broker = "redis://HOST:6379/0" in the file (or DICOM_NODE_BROKER), '
            "or run `dicom-node up`, which brings one"
        )
    app.conf.broker_url = settings.broker
    return app


#: The model's thread and the first task may ask at once; a signal may come while they do.
_opening = threading.RLock()


def _pipeline() -> Pipeline:
    with _opening:
        return _opened_pipeline()


@cache
def _opened_pipeline() -> Pipeline:
    from dicom_node.pipeline import open_pipeline

    pipeline = open_pipeline(load_settings())
    pipeline.pressed = lambda: Bell(app).waiting(LABEL_QUEUE) > 0
    return pipeline


def model() -> Model:
    """The model of this process."""
    return _pipeline().model


def drain() -> None:
    """This process is to end: what it works on is finished in time or handed back."""
    if _opened_pipeline.cache_info().currsize:
        _opened_pipeline().drain()
    if _deliverer.cache_info().currsize:
        _deliverer().draining = True


def hang_up() -> None:
    """This process has ended its work: associations that it keeps open are released."""
    if _deliverer.cache_info().currsize:
        _deliverer().caller.close()


@app.task(name="dicom_node.beat")
def beat() -> None:
    """A worker's message to itself; that it arrives is all it says (`worker`)."""


@app.task(name="dicom_node.prepare")
def prepare(study_uid: str) -> None:
    """Prepare what has come of a growing study; complete studies have their turn first."""
    if not _pipeline().prepare(study_uid):
        Bell(app).prepare(study_uid)


@cache
def _deliverer() -> Deliverer:
    from dicom_node.deliver import open_deliverer

    return open_deliverer(load_settings())


@app.task(name="dicom_node.label_study")
def label_study(study_uid: str) -> None:
    """Label one study; its reports go on their way at once."""
    pipeline = _pipeline()
    pipeline.label_study(study_uid)
    bell = Bell(app)
    for report_uid, destination in pipeline.ledger.deliveries.due(pipeline.settings.ring_again_seconds):
        if bell.deliver(report_uid, destination):
            pipeline.ledger.deliveries.rung(report_uid, destination)


@app.task(name="dicom_node.deliver")
def deliver(report_uid: str, destination: str) -> None:
    """Send one report to one destination, and what else waits for it."""
    _deliverer().work_off(destination, report_uid)


class Bell:
    """Rings for work; a broker that is away costs a warning, never a study."""

    def __init__(self, celery: Celery) -> None:
        self.celery = celery
        self._broken = False

    def prepare(self, study_uid: str) -> bool:
        return self._ring("dicom_node.prepare", study_uid)

    def beat(self, queue: str, expires: float) -> bool:
        """Into a worker's own queue; forgotten after so many seconds."""
        return self._ring("dicom_node.beat", queue=queue, expires=expires)

    def label(self, study_uid: str) -> bool:
        return self._ring("dicom_node.label_study", study_uid)

    def deliver(self, report_uid: str, destination: str) -> bool:
        return self._ring("dicom_node.deliver", report_uid, destination)

    def waiting(self, queue: str) -> int:
        """Messages that nobody has taken yet; 0 when the broker cannot say."""
        try:
            with self.celery.connection_for_read() as connection:
                return int(connection.default_channel.client.llen(queue))
        except (OperationalError, OSError, *_redis_errors()):
            return 0

    def time(self) -> float | None:
        """Seconds since the epoch by the broker's own clock; None when it cannot say."""
        try:
            with self.celery.connection_for_read() as connection:
                seconds, microseconds = connection.default_channel.client.time()
                return float(seconds + microseconds / 1e6)
        except (OperationalError, OSError, *_redis_errors()):
            return None

    def _ring(self, name: str, *arguments: str, **options: Any) -> bool:
        try:
            self.celery.send_task(name, arguments, retry=False, ignore_result=True, **options)
        except (OperationalError, OSError) as error:
            if not self._broken:
                log.warning("the broker is away; the ledger keeps the work until it is back", reason=str(error))
            self._broken = True
            return False
        if self._broken:
            log.info("the broker is back")
        self._broken = False
        return True


def _redis_errors() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return (RedisError,)
