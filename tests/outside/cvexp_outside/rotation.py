"""`task=rotation`: predicting how an image was rotated (Gidaris et al., https://arxiv.org/abs/1803.07728)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor, nn

from cvexp.config import RunConfig
from cvexp.data.augment.views import BatchView, View
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.pretraining import Pretraining, PretrainingConfig, pretrain


@dataclass(kw_only=True)
class Config(PretrainingConfig):
    measures: ClassVar[tuple[str, ...]] = (*PretrainingConfig.measures, "rotation_accuracy")

    size: int = MISSING


def main(config: RunConfig, run: ReadOnlyRun) -> float:
    """Pretrain, and return the monitored metric at the best epoch."""
    return pretrain(Rotation, config, run)


class Rotation(Pretraining):
    """Classifies each image, shown in four rotations, by its rotation."""

    encoder_name = "network.encoder"

    @classmethod
    def choose_sizes(cls, config: RunConfig) -> list[dict[str, int]]:
        assert isinstance(config.task, Config)
        return [{"task.size": config.task.size, "task.eval_size": config.task.eval_size}]

    def make_networks(self, backbone: nn.Module, num_features: int) -> None:
        self.network = nn.ModuleDict({"encoder": backbone, "head": nn.Linear(num_features, 4)})

    def views(self) -> list[BatchView]:
        return [View(self.sizes["task.size"], (0.5, 1.0), 0.5, (0.2, 0.2, 0.2, 0.1), 0.8, 0.0, 0.0, 0.0)]

    def crop_resolution(self) -> float:
        return max(self.sizes.values()) * math.sqrt(2)

    def step(self, batch: tuple[list[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        (images,), _ = batch
        logits, rotations = self._classify(images)
        accuracy = (logits.argmax(1) == rotations).float().mean()
        return F.cross_entropy(logits, rotations), {"rotation_accuracy": accuracy}

    def _classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rotated = torch.cat([images.rot90(k, dims=(2, 3)) for k in range(4)])
        rotations = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return self.network["head"](self.network["encoder"](rotated)), rotations

    def evaluate(self, views: list[Tensor]) -> dict[str, Tensor]:
        logits, rotations = self._classify(views[0])
        accuracy = (logits.argmax(1) == rotations).float().mean()
        return {"loss": F.cross_entropy(logits, rotations), "accuracy": accuracy}

    def summarize(self, means: dict[str, Tensor]) -> dict[str, float]:
        return {"rotation_accuracy": float(means["accuracy"])}

    def describe_collapse(self) -> str:
        return f"{math.log(4):.3f} if all rotations look alike"


Method = Rotation
