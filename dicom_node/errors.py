"""Our errors, named by what happens next.

NodeError
├── ConfigurationError   nothing starts; the message names the line and what would be right
├── Refused              the peer gets a DIMSE status and keeps its object
│   ├── NotAuthorised        0x0124: the peer may not push such an object
│   ├── OutOfResources       0xA700: no room; the peer may send again later
│   ├── IdentityMismatch     0xA900: the data set is not the object that the command announced
│   └── NotUnderstood        0xC000: no study or instance to file it under
├── CutOff               the connection ends: the peer broke the protocol or a bound
├── Retry                tried again after a pause, by itself
│   ├── NotYet               so too, and no fault of the peer's: something of ours comes first
│   └── Stumbled             so too, but only so often: the peer failed on this very object
├── Quarantine           laid aside with its reason; a person decides (`dicom-node status`)
│   ├── NotTaken             the peer takes no objects of this SOP class
│   ├── Replaced             what was to be sent was lost, and something newer goes instead; nothing is owed
│   └── NoObject             the file is no DICOM object; others are sent
├── HandedBack           this process makes room or ends; the work goes on later or elsewhere, nothing is counted
└── Superseded           another worker owns this work now, or the study has grown; nothing to do
"""


class NodeError(Exception):
    """Something went wrong in the node.

    Args:
        message: what happened, to whom, and what mends it.
        words: what a peer said about it. They may name a patient, so the ledger gets them and the log does not.
    """

    def __init__(self, message: str | None = None, words: str = "") -> None:
        self.loggable = message or (self.__doc__ or "").strip().splitlines()[0]
        super().__init__(f"{self.loggable}: {words}" if words else self.loggable)


class ConfigurationError(NodeError):
    """The configuration cannot be used."""


class Refused(NodeError):
    """The object was not taken; its sender keeps it."""

    #: Answered to the peer (PS3.4 B.2.3).
    status = 0xC000

    def __init__(self, message: str | None = None, comment: str = "") -> None:
        """`comment`: what the peer is told (PS3.7 C.1), without patients' data; unset: what all of its kind are."""
        super().__init__(message)
        self.comment = comment or (self.__doc__ or "").strip().splitlines()[0]


class NotAuthorised(Refused):
    """The peer may not push such an object."""

    #: PS3.7 C.5.7.
    status = 0x0124


class OutOfResources(Refused):
    """No room for the object."""

    status = 0xA700


class IdentityMismatch(Refused):
    """The data set is not the object that the command announced."""

    status = 0xA900


class NotUnderstood(Refused):
    """The data set names no study or instance to file it under."""

    status = 0xC000


class CutOff(NodeError):
    """The peer broke the protocol or a bound; its connection ends."""


class Retry(NodeError):
    """It did not work now; it will be tried again."""


class NotYet(Retry):
    """Something of ours has to come first; the peer has done nothing wrong."""


class Stumbled(Retry):
    """The peer failed on this object; a few tries, then a person decides."""


class Quarantine(NodeError):
    """It will not work by itself; laid aside for a person."""


class NotTaken(Quarantine):
    """The peer takes no objects of this SOP class."""


class Replaced(Quarantine):
    """What was to be sent was lost, and something newer goes instead."""


class NoObject(Quarantine):
    """The file is no DICOM object."""


class HandedBack(NodeError):
    """The work is handed back; nothing has failed."""


class Superseded(NodeError):
    """Another worker owns this work now, or the study has grown since."""
