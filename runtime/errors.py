"""The one tree of errors.

    PaliGemmaError
    ├── BundleError          a bundle that is missing, damaged or not understood
    ├── CheckpointError      a checkpoint that cannot be exported
    ├── TokenizerError       a tokenizer that is not a PaliGemma tokenizer
    ├── ImageError           an image that cannot be used
    ├── PromptError          a prompt that cannot be used
    ├── OptionError          an option or a value that is not known
    ├── DeviceError          a device that is not there, or refuses the work
    ├── OutputError          something that cannot be written
    └── MissingExtraError    a command whose packages are not installed

Every message is one line: what was found, what was wanted, what to do. Each leaf is also
the builtin that a caller would expect to catch.
"""


class PaliGemmaError(Exception):
    """Base of every error that this package raises on purpose."""


class BundleError(PaliGemmaError, ValueError):
    """A bundle is missing, damaged or of another schema."""


class CheckpointError(PaliGemmaError, ValueError):
    """A checkpoint cannot be read or does not describe a supported PaliGemma."""


class TokenizerError(PaliGemmaError, ValueError):
    """A tokenizer lacks the pieces of PaliGemma, or its conversion is not exact."""


class ImageError(PaliGemmaError, ValueError):
    """An image is unreadable, too large or of a kind that is not accepted."""


class PromptError(PaliGemmaError, ValueError):
    """A prompt is empty, does not fit, or names images that are not there."""


class OptionError(PaliGemmaError, ValueError):
    """An option has a value that is not accepted."""


class DeviceError(PaliGemmaError, RuntimeError):
    """A device is absent, or failed while it worked."""


class OutputError(PaliGemmaError, OSError):
    """A file or a folder cannot be written, or stands in the way."""


class MissingExtraError(PaliGemmaError, ImportError):
    """A command needs packages that are not installed."""
