"""The model of a worker process: loaded once; while that fails it is the node's trouble, said once and tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from dicom_node.study import UNFIT
from labeler.errors import BundleError, LabelerError

if TYPE_CHECKING:
    from labeler.label import Labeler

log = structlog.get_logger("model")

_REMEDY = "see `bundle` and `device` in the settings, `dicom-node config check`; studies wait, none is laid aside"
#: Seconds between two tries of a worker that has nothing else to do.
_AGAIN = 30.0


@dataclass
class Model:
    """Safe for threads: whoever comes while another loads waits for what that finds.

    Attributes:
        loading: is it being loaded now?
        trouble: why it could not be loaded; empty while it is well.
    """

    load: Callable[[], Labeler]
    trouble: str = ""
    loading: bool = False
    loaded: Labeler | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self) -> Labeler:
        """The model.

        Raises:
            BundleError: it cannot be loaded, for whatever reason.
        """
        with self._lock:
            if self.loaded is None:
                self.loaded = self._load()
            return self.loaded

    def ready(self) -> bool:
        """Is it loaded, or could be?"""
        try:
            self.get()
        except BundleError:
            return False
        return True

    def keep_trying(self, stop: threading.Event) -> None:
        """Load it ahead of the first study; returns when that is done."""
        while not self.ready() and not stop.wait(_AGAIN):
            pass

    def _load(self) -> Labeler:
        self.loading, began = True, time.monotonic()
        try:
            loaded = self.load()
        except Exception as error:  # a GPU that is away, or full, has errors of every kind
            told = str(error) if isinstance(error, LabelerError) else f"{type(error).__name__}: {error}"
            if told != self.trouble:
                log.error("cannot load the model: nothing is labelled", reason=told, remedy=_REMEDY)
            self.trouble = told
            raise BundleError(f"{UNFIT} {told}") from error
        finally:
            self.loading = False
        self.trouble = ""
        log.info("model loaded", bundle=loaded.info.name, seconds=round(time.monotonic() - began, 1))
        return loaded
