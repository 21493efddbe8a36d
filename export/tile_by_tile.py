"""One tile after the other through the encoder, for a graph that may loop."""

from torch import Tensor
from torch._higher_order_ops.scan import scan

from ptp.export.adapters.base import TileEncoder


class TileByTile(TileEncoder):
    """An encoder that sees one tile at a time, in a Scan: a CPU's cache holds the activations of one, not of all.

    Args:
        encoder: the family's vision side.
    """

    def __init__(self, encoder: TileEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def encode(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TileEncoder.encode`."""

        def step(carried: Tensor, tile: Tensor) -> tuple[Tensor, list[Tensor]]:
            return carried.clone(), [seen.squeeze(0).clone() for seen in self.encoder.encode(tile[None])]

        # torch has no scan that carries nothing, nor one that returns two views of one tensor
        _, (features, saliency, cls) = scan(step, tiles.new_zeros(1), tiles)
        return features, saliency, cls

    def project(self, features: Tensor) -> Tensor:
        """See `TileEncoder.project`."""
        return self.encoder.project(features)

    @property
    def newline(self) -> Tensor:
        """See `TileEncoder.newline`."""
        return self.encoder.newline
