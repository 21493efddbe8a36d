"""What a model family must supply to be exported; one file beside this one and one line in the table add a family."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ptp.bundle.manifest import Tiling
from ptp.export.language import EarlyBlocks


class TileEncoder(nn.Module, ABC):
    """Vision encoder and projector of a family, over a flat batch of tiles."""

    @abstractmethod
    def encode(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what pruning needs of each tile.

        Args:
            tiles: (n, 3, S, S).

        Returns:
            features (n, N, C) before the projector, token saliency (n, N) float32, CLS embedding (n, C).
        """

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Return the language model's view (…, H) of features (…, C)."""

    @property
    @abstractmethod
    def newline(self) -> Tensor:
        """The row separator's embedding, (H,)."""


class Adapter(Protocol):
    """A model family: how its configuration maps to tiles and its weights to modules."""

    @staticmethod
    def check(config: Any) -> None:
        """Raise CheckpointError if the configuration is one that this family's export does not cover."""

    @staticmethod
    def tiling(config: Any, image_processor: Any) -> Tiling:
        """Return how images become tiles."""

    @staticmethod
    def saliency_layer(config: Any) -> int:
        """Return the 0-based vision block whose CLS attention is the token saliency."""

    @staticmethod
    def build_encoder(model: Any, saliency_layer: int) -> TileEncoder:
        """Return the vision side of a loaded model."""

    @staticmethod
    def build_early_blocks(model: Any) -> EarlyBlocks:
        """Return the language model's first blocks."""

    @staticmethod
    def load_class() -> Any:
        """Return transformers' class that loads the checkpoint."""

    @staticmethod
    def load_processor(folder: Path, tokenizer: Any) -> Any:
        """Return transformers' processor of a checkpoint, its image processor in PIL form."""
