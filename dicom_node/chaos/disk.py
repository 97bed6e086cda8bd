"""A disk of the node's own, small enough to be filled.

Where we may, a tmpfs in a mount namespace of this process: it vanishes with the process, however that ends. Elsewhere
the node's processes are forbidden to write files for a while (RLIMIT_FSIZE), which they see as a failing disk.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_NEW_MOUNTS = 0x00020000
_MIB = 1 << 20


class Disk:
    """The disk under a folder."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.own = _mounted(folder, mib)

    def leave(self, mib: float, pids: Iterable[int]) -> None:
        """Leave so much free room; without a disk of our own, `pids` may write nothing more."""
        if self.own:
            size = max(0, shutil.disk_usage(self.folder).free - int(mib * _MIB))
            with self._ballast.open("wb") as file, suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
        else:
            _allow(pids, 0)

    def close(self) -> None:
        """Unmount it; what lay there is gone."""
        if self.own:
            subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)

    def relieve(self, pids: Iterable[int]) -> None:
        self._ballast.unlink(missing_ok=True)
        if not self.own:
            _allow(pids, resource.RLIM_INFINITY)


def _allow(pids: Iterable[int], size: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _mounted(folder: Path, mib: int) -> bool:
    """Mount a tmpfs there that nobody else sees; False where we may not. Only the calling thread and its later
    children and threads see it, so it is called before any thread is started."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) != 0:
        return False
    private = ["mount", "--make-rprivate", "/"]
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "dicom-node-chaos", str(folder)]
    return all(
        subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in (private, tmpfs)
    )
