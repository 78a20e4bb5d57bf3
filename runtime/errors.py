"""The errors that this package raises, in one tree.

    PaliGemmaError
    ├── BundleError          a bundle is missing, damaged or of another version
    ├── CheckpointError      a checkpoint cannot be exported
    ├── TokenizerError       a tokenizer is not a PaliGemma tokenizer
    ├── ImageError           an image cannot be used
    ├── PromptError          a prompt cannot be used
    ├── OptionError          an option has a value that is not accepted
    ├── DeviceError          a device is missing, or failed
    │   └── NonFiniteLogitsError   a variant computed NaN or Inf
    ├── OutputError          a file or folder cannot be written
    └── MissingExtraError    a package that is needed is not installed

Every message is one line: what was found, what was wanted, what to do. Whatever it quotes of a
stranger's file is made short and harmless when the error is made. Each class is also the builtin
exception that a caller would expect to catch.

Example:
    >>> try:
    ...     result = model.detect("street.jpg", "car")
    ... except PaliGemmaError as error:
    ...     print(f"not answered: {error}")
"""

from __future__ import annotations

from paligemma_edge.runtime.printable import short_line


class PaliGemmaError(Exception):
    """Base class of every error that this package raises on purpose."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(short_line(arg) if isinstance(arg, str) else arg for arg in args))


class BundleError(PaliGemmaError, ValueError):
    """A bundle is missing, damaged or of another schema version. Also a ValueError."""


class CheckpointError(PaliGemmaError, ValueError):
    """A checkpoint cannot be read, or is not a supported PaliGemma. Also a ValueError."""


class TokenizerError(PaliGemmaError, ValueError):
    """A tokenizer lacks PaliGemma's tokens, or cannot be converted exactly. Also a ValueError."""


class ImageError(PaliGemmaError, ValueError):
    """An image is unreadable, too large or of a kind that is not accepted. Also a ValueError."""


class PromptError(PaliGemmaError, ValueError):
    """A prompt asks for nothing, is too long or does not fit the images. Also a ValueError."""


class OptionError(PaliGemmaError, ValueError):
    """An option or argument has a value that is not accepted. Also a ValueError."""


class DeviceError(PaliGemmaError, RuntimeError):
    """A device is missing, has too little memory, or failed. Also a RuntimeError."""


class NonFiniteLogitsError(DeviceError):
    """A variant produced logits that are NaN or infinite."""


class OutputError(PaliGemmaError, OSError):
    """A file or folder cannot be written, or would be overwritten. Also an OSError."""


class MissingExtraError(PaliGemmaError, ImportError):
    """Something needs a package that is not installed. Also an ImportError."""
