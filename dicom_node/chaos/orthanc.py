"""Debian's Orthanc as the PACS of a rehearsal; what it keeps is fetched over REST when the night is over."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from dicom_node.chaos.pacs import AE_TITLE
from dicom_node.chaos.servers import Server, free_port
from dicom_node.errors import ConfigurationError
from dicom_node.uids import is_uid


class Orthanc(Server):
    """An Orthanc below `folder`."""

    def __init__(self, folder: Path, logs: Path) -> None:
        """ConfigurationError where it is not installed."""
        program = shutil.which("Orthanc", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
        if program is None:
            raise ConfigurationError("no Orthanc on this machine: use --pacs archive")
        self._http_port, port, config = free_port(), free_port(), folder / "orthanc.json"
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": AE_TITLE,
            "DicomPort": port,
            "HttpPort": self._http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "Plugins": [],
        }
        config.write_text(json.dumps(settings))
        super().__init__("pacs", [program, str(config)], logs / "pacs.log", port, environment={"TCP_NODELAY": "1"})

    def fetch(self, into: Path) -> None:
        """Write every object that it keeps to `into`, as the demo's archive would have."""
        for found in json.loads(self._get("/instances?expand")):
            uid = str(found["MainDicomTags"]["SOPInstanceUID"])
            if is_uid(uid):
                (into / f"{uid}.dcm").write_bytes(self._get(f"/instances/{found['ID']}/file"))

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=30) as answer:
            return answer.read()
