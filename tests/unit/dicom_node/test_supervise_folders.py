"""What a supervisor leaves behind when it is killed, the next one clears; what a living one needs stays."""

import os
import subprocess
from pathlib import Path

from dicom_node.supervise import clear_after_dead


def test_only_the_folders_of_dead_supervisors_are_cleared(tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, own, other = (tmp_path / f"dicom-node-up-{name}" for name in (f"{gone.pid}-x", f"{os.getpid()}-y", "z"))
    for folder in (dead, own, other):
        folder.mkdir()
        (folder / "label").touch()
    clear_after_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, other])
