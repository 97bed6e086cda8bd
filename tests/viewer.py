"""OHIF over Orthanc's DICOMweb, served on loopback, as a radiologist's browser would meet it."""

from __future__ import annotations

import shutil
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support import needs, tool

VERSION = "3.13.2"
CACHE = Path.home() / ".cache" / "dicom-node-tests"

_CONFIG = """
window.config = {
  routerBasename: '/', showStudyList: false, extensions: [], modes: [], showWarningMessageForCrossOrigin: false,
  // a report without coordinates is no measurement to draw: see docs/viewers.md
  customizationService: [{onBeforeSRAddMeasurement: {$set: ({measurement}) =>
    measurement.coords.length ? measurement : {...measurement, coords: [{}]}}}],
  investigationalUseDialog: {option: 'never'}, defaultDataSourceName: 'dicomweb',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'dicomweb',
    configuration: {
      friendlyName: 'Orthanc', name: 'Orthanc', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      wadoUriRoot: '/dicom-web', qidoSupportsIncludeField: false, imageRendering: 'wadors',
      thumbnailRendering: 'wadors', enableStudyLazyLoad: true, supportsFuzzyMatching: false,
      supportsWildcard: true, omitQuotationForMultipartRequest: true,
    },
  }],
};
"""


def ohif() -> Path:
    """The viewer's built pages, as its makers publish them; fetched once."""
    place = CACHE / f"ohif-{VERSION}"
    if not place.is_dir():
        needs("npm")
        CACHE.mkdir(parents=True, exist_ok=True)
        packed = tool("npm", "pack", f"@ohif/app@{VERSION}", "--silent", "--pack-destination", CACHE).stdout.split()[-1]
        with tarfile.open(CACHE / packed) as archive:
            archive.extractall(CACHE / "unpacked", filter="data")
        (CACHE / "unpacked" / "package" / "dist").rename(place)
        shutil.rmtree(CACHE / "unpacked")
        (CACHE / packed).unlink()
    return place


class _Pages(SimpleHTTPRequestHandler):
    """The pages, their settings, and Orthanc behind the same address."""

    archive = ""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/dicom-web"):
            self._forward()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", _CONFIG.encode())
        else:
            if not Path(self.translate_path(path)).is_file():
                self.path = "/index.html"
            super().do_GET()

    def _forward(self) -> None:
        wanted = urllib.request.Request(self.archive + self.path, headers={"Accept": self.headers.get("Accept", "*/*")})
        try:
            with urllib.request.urlopen(wanted, timeout=30) as answer:
                self._answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
        except urllib.error.HTTPError as error:
            self._answer(error.code, "text/plain", error.read())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a page asks for hundreds of files."""


@contextmanager
def served(archive_url: str) -> Iterator[str]:
    """The viewer's address, for an archive whose DICOMweb is at `/dicom-web` below that URL."""
    handler = type("Pages", (_Pages,), {"archive": archive_url})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(ohif())))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
