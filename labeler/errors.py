"""What can go wrong when a picture is labelled.

LabelerError
├── InputError           the images cannot be used; the message says why, the files stay untouched
└── BundleError          the model cannot be used; nothing is labelled until it is mended
    ├── BundleMissing    no such folder, or not a CLIP checkpoint
    ├── DeviceMissing    this machine has no such device, or PyTorch cannot use it
    └── BundleMismatch   a part is not the one that the manifest was made for
"""


def is_the_systems(error: BaseException) -> bool:
    """Did a disk, a network or the system under them fail, which says nothing about the bytes of a file?

    pydicom raises OSError for bytes that end too early as well; the system numbers its own, but for what took too long.
    """
    return isinstance(error, OSError) and (error.errno is not None or isinstance(error, TimeoutError | ConnectionError))


class LabelerError(Exception):
    """The labeler could not do its work."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class InputError(LabelerError):
    """The images cannot be used."""


class BundleError(LabelerError):
    """The model cannot be used."""


class BundleMissing(BundleError):
    """There is no model at that place."""


class DeviceMissing(BundleError):
    """This machine has no such device."""


class BundleMismatch(BundleError):
    """A part of the bundle is not the one that its manifest was made for."""
