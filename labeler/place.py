"""Pure but for a look at the disk: does a checkpoint's name mean a folder here, or one on the hub?"""

from __future__ import annotations

from pathlib import Path

from labeler.errors import BundleMissing


def is_here(checkpoint: str | Path) -> bool:
    """True for a folder on this machine; False for what can only be a name on the hub (NAME or OWNER/NAME).

    Raises:
        BundleMissing: it reads as a folder, and there is none.
    """
    place = Path(checkpoint)
    if place.is_file():
        raise BundleMissing(f"{checkpoint}: is a file; a bundle is a folder")
    if place.is_dir():
        return True
    if place.is_absolute() or len(place.parts) > 2 or str(checkpoint).startswith((".", "~")):
        raise BundleMissing(f"{checkpoint}: no such folder; write where the bundle lies, or the name of one on the hub")
    return False
