"""The result of an evaluation: the schema is the root package's, because exports read it too."""

from ptp.results import Difference, Family, Results, Row, weights_sha256

__all__ = ["Difference", "Family", "Results", "Row", "weights_sha256"]
