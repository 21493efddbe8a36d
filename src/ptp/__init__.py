"""Export high-resolution vision-language models with Pyramid Token Pruning inside the graph, and run them.

Example:
    >>> from ptp import Pipeline
    >>> pipeline = Pipeline.load("bundle/")
    >>> for piece in pipeline.stream("photo.jpg", "What is on the table?"):
    ...     print(piece, end="")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ptp.errors import PtpError

if TYPE_CHECKING:
    from ptp.chat import Chat
    from ptp.runtime.pipeline import Pipeline

__version__ = version("ptp-export")
__all__ = ["Chat", "Pipeline", "PtpError", "__version__"]


def __getattr__(name: str) -> Any:
    # imported on first use: `import ptp` alone stays light for the exporter and for scripts
    if name == "Pipeline":
        from ptp.runtime.pipeline import Pipeline

        return Pipeline
    if name == "Chat":
        from ptp.chat import Chat

        return Chat
    raise AttributeError(f"module 'ptp' has no attribute {name!r}")
