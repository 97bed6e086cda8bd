"""What a spooled file says of itself: the digest that its data set must have, in its preamble (PS3.10 7.1).

An image is written under its name, which may be on the disk before its bytes are. After a power cut or a kill the seal
tells a file that is whole from one that never was, and was never acknowledged (docs/decisions/0023).
"""

from __future__ import annotations

#: Bytes before `DICM`, which are for whoever writes the file.
PREAMBLE = 128
_SAYS = b"dicom-node: BLAKE3 of the data set "
#: Of a file that is still being written.
UNFINISHED = b"dicom-node: unfinished".ljust(PREAMBLE, b"\0")


def seal_of(digest: str) -> bytes:
    """The preamble of a file whose data set has this digest."""
    return (_SAYS + digest.encode()).ljust(PREAMBLE, b"\0")


def promised(head: bytes) -> str | None:
    """The digest that a file's first bytes promise, "" where they were never all written; None of files without a seal.

    Args:
        head: preamble and `DICM`, or less where the file is shorter.
    """
    if head.startswith(UNFINISHED) or not any(head):
        return ""
    if not head.startswith(_SAYS):
        return None
    return head[len(_SAYS) : PREAMBLE].rstrip(b"\0").decode("ascii", "replace")
