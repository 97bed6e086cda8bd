"""The disk: images as received, reports as written; and how they go again."""

from dicom_node.spool.backlog import GROUP
from dicom_node.spool.spool import Part, Spool, Stored

__all__ = ["GROUP", "Part", "Spool", "Stored"]
