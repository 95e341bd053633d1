"""Features of crops, computed with several networks in one pass over the images.

Shapes: n crops, d features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cvexp import progress
from cvexp.config import LoaderConfig
from cvexp.data.augment.views import CenterView
from cvexp.data.crops import CropBatches, Crops
from cvexp.data.index import Index
from cvexp.data.kept import Images
from cvexp.data.loaders import FixedBatches, make_loader
from cvexp.models.untrained import estimate_batch_norm
from cvexp.probing.networks import FrozenNetwork


@torch.inference_mode()
def compute_features(
    networks: Sequence[FrozenNetwork], index: Index, config: LoaderConfig, device: torch.device
) -> list[Tensor]:
    """Compute the features (n, d) of all crops of an index with each network, in the memory of the CPU.

    Args:
        networks: The networks, on the device.
        index: The objects.
        config: Batch size and number of workers.
        device: The device that the networks run on.
    """
    features: list[list[Tensor]] = [[] for _ in networks]
    batches = _batches(networks, list(range(len(index))), index, config, device)
    num_batches = math.ceil(len(index) / config.batch_size)
    for images in progress.track(batches, f"features of the {index.split} crops", num_batches, "batches"):
        for network, parts in zip(networks, features, strict=True):
            parts.append(_forward(network, images).cpu())
    return [torch.cat(parts) for parts in features]


def _forward(network: FrozenNetwork, images: dict[int, Tensor]) -> Tensor:
    output: Tensor = network.module(_normalized(network, images))
    return output.float()


def estimate_statistics(
    networks: Sequence[FrozenNetwork], index: Index, config: LoaderConfig, device: torch.device
) -> None:
    """Estimate the statistics of batch norm in the networks that need it, from all crops of an index.

    The crops are shuffled, because those of a class may follow each other. Incomplete batches are left out.

    Args:
        networks: The networks, on the device.
        index: The training objects.
        config: Batch size and number of workers.
        device: The device that the networks run on.
    """
    networks = [network for network in networks if network.needs_statistics]
    if not networks:
        return
    order = np.random.default_rng(0).permutation(len(index))
    batch_size = max(config.batch_size, 2)  # batch norm can't normalize a single number
    order = order[: max(len(index) // batch_size, 1) * batch_size]
    batches = _batches(networks, order.tolist(), index, replace(config, batch_size=batch_size), device)
    inputs = ([_normalized(network, images) for network in networks] for images in batches)
    tracked = progress.track(inputs, "statistics of batch norm", len(order) // batch_size, "batches")
    estimate_batch_norm([network.module for network in networks], tracked)


def _normalized(network: FrozenNetwork, images: dict[int, Tensor]) -> Tensor:
    views = images[network.eval_size]
    return views if network.normalize is None else network.normalize(views)


def _batches(
    networks: Sequence[FrozenNetwork], positions: list[int], index: Index, config: LoaderConfig, device: torch.device
) -> Iterator[dict[int, Tensor]]:
    """Yield batches of whole crops (b, 3, s, s) uint8 on the device, by the side lengths s that the networks need."""
    sizes = sorted({network.eval_size for network in networks})
    crops = CropBatches(index, Images(Crops(index)), [CenterView(size) for size in sizes], seed=0)
    loader: DataLoader[Any] = make_loader(crops, FixedBatches(positions, config.batch_size), config)
    for views, _ in loader:
        yield {size: view.to(device) for size, view in zip(sizes, views, strict=True)}
