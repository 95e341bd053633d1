"""Features that need no training: color histograms, and random networks with estimated batch norm statistics.

Shapes: b images, c channels, h x w pixels, n bins per channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


class ColorHistogram(nn.Module):
    """The square roots of a joint histogram of red, green and blue.

    The histogram of an image sums to one, so the dot product of two outputs is the Bhattacharyya coefficient.

    Args:
        num_bins: Number of bins per channel, a power of two.
    """

    def __init__(self, num_bins: int = 4) -> None:
        super().__init__()
        self.num_bins = num_bins

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) uint8 to histograms (b, n^3)."""
        red, green, blue = (images.flatten(2).long() // (256 // self.num_bins)).unbind(1)
        bins = (red * self.num_bins + green) * self.num_bins + blue
        counts = torch.zeros(len(images), self.num_bins**3, device=images.device)
        return (counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=counts.dtype)) / bins.shape[1]).sqrt()


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """Return the batch norm layers that keep running statistics."""
    return [module for module in network.modules() if isinstance(module, BatchNorm) and module.track_running_stats]


@torch.no_grad()
def estimate_batch_norm(networks: Sequence[nn.Module], batches: Iterable[Sequence[Tensor]]) -> None:
    """Replace the running statistics of batch norm by averages over batches; all weights stay as they are.

    Everything but batch norm runs in evaluation mode. Afterwards, all of it does.

    Args:
        networks: Networks with batch norm.
        batches: In each turn, a batch of normalized images (b, 3, h, w) for each network.
    """
    for network in networks:
        network.eval()
        for norm in batch_norms(network):
            norm.reset_running_stats()
            norm.momentum = None  # an average over all batches with equal weights
            norm.train()
    for inputs in batches:
        for network, images in zip(networks, inputs, strict=True):
            network(images)
    for network in networks:
        network.eval()
