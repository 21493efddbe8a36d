"""Every error this package raises on purpose.

    PtpError
    ├── ConfigError        an option has a value that cannot be used
    ├── CheckpointError    a model folder or Hugging Face id cannot be loaded as it is
    ├── ExportError        an export cannot be written
    │   ├── LintError      the graph contains a form that an engine builder refuses
    │   ├── ParityError    the graph does not compute what the reference computes
    │   └── BuildError     an engine builder refused the graph
    ├── BundleError        a bundle on disk cannot be used
    │   ├── SchemaError    its manifest is malformed or of another schema version
    │   └── IntegrityError a file of it is missing, altered or too large
    ├── ImageError         an image cannot be read
    ├── PromptError        a prompt cannot be used with this bundle
    ├── BackendError       a runtime backend is missing or failed
    └── VerificationError  a backend does not return what was recorded at export

A message is one line: what failed, what was found, what was expected, what to do.
"""

MAX_CAUSE = 300
"""Characters of an exception of another library that a message cites."""


class PtpError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one line for a person.

    Args:
        what: what failed.
        got: what was found.
        expected: what would have been accepted.
        do: what the user can do about it.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, do: str | None = None) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if do is not None:
            parts.append(do)
        # one line, and nothing in it that a terminal would obey: parts of it may come from a stranger's file
        super().__init__("".join(c if c.isprintable() else "�" for c in " ".join("; ".join(parts).split())))


class ConfigError(PtpError):
    """An option has a value that cannot be used."""


class CheckpointError(PtpError):
    """A model folder or Hugging Face id cannot be loaded as it is."""


class ExportError(PtpError):
    """An export cannot be written."""


class LintError(ExportError):
    """The graph contains a form that an engine builder refuses."""


class ParityError(ExportError):
    """The graph does not compute what the reference computes."""


class BuildError(ExportError):
    """An engine builder refused the graph."""


class BundleError(PtpError):
    """A bundle on disk cannot be used."""


class SchemaError(BundleError):
    """The manifest is malformed or of another schema version."""


class IntegrityError(BundleError):
    """A file of the bundle is missing, altered or too large."""


class ImageError(PtpError):
    """An image cannot be read."""


class PromptError(PtpError):
    """A prompt cannot be used with this bundle."""


class BackendError(PtpError):
    """A runtime backend is missing or failed."""


class VerificationError(PtpError):
    """A backend does not return what was recorded at export."""


def cause(error: BaseException) -> str:
    """Return an exception's type and first line, with the one after it where that says what it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {text[:MAX_CAUSE]}" if text else type(error).__name__


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interruption that an error comes from: a library that is stopped may raise one of its own."""
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, KeyboardInterrupt):
        origin = origin.__cause__ or origin.__context__
    return origin
