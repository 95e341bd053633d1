"""Features that need no training."""

import numpy as np
import pytest
import torch
from torch import nn

from cvexp.models.backbone import create_backbone
from cvexp.models.untrained import ColorHistogram, batch_norms, estimate_batch_norm


def test_color_histogram_equals_numpys() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 8, 9), dtype=np.uint8))
    histograms = ColorHistogram(4)(images)
    assert histograms.shape == (3, 64)
    assert histograms.square().sum(1).tolist() == pytest.approx([1, 1, 1])
    for image, histogram in zip(images, histograms, strict=True):
        counts, _ = np.histogramdd(image.flatten(1).T.numpy(), bins=4, range=[(0, 256)] * 3)
        assert histogram.numpy() == pytest.approx(np.sqrt(counts / counts.sum()).ravel())


def test_only_the_statistics_of_batch_norm_are_estimated() -> None:
    network = create_backbone("resnet_mini").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = [5 * torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(i)) + 2 for i in range(3)]
    inputs: list[torch.Tensor] = []
    handle = batch_norms(network)[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    estimate_batch_norm([network], [[batch] for batch in batches])
    handle.remove()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    assert not any(module.training for module in network.modules())
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in inputs]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in inputs]).mean(0)
    norm = batch_norms(network)[0]
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, variance, rtol=1e-4)  # type: ignore[arg-type]


def test_networks_without_batch_norm_have_none() -> None:
    assert batch_norms(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))) == []
