"""The demo's archive as a process, which also keeps a list of all that it was sent: `pacs FOLDER PORT`."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

from pynetdicom import evt

from dicom_node.demo.archive import Archive

AE_TITLE = "PACS"
LIST = "received.txt"


class Listing(Archive):
    """An archive that writes one line for every object before it answers: SOP Instance UID and the data set's hash."""

    def _keep(self, event: evt.Event) -> int:
        status = super()._keep(event)
        digest = hashlib.sha256(event.request.DataSet.getvalue()).hexdigest()
        descriptor = os.open(self.folder / LIST, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{event.request.AffectedSOPInstanceUID} {digest}\n".encode())
        finally:
            os.close(descriptor)
        return status


if __name__ == "__main__":
    with Listing(Path(sys.argv[1]), AE_TITLE, port=int(sys.argv[2])):
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
