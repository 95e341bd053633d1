"""`task=simclr`: contrastive pretraining (Chen et al., https://arxiv.org/abs/2002.05709)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING
from torch import Tensor, nn

from cvexp.config import RunConfig
from cvexp.data.augment.views import BatchView, View
from cvexp.errors import UserError
from cvexp.keys import area_scale, color_jitter, number, share
from cvexp.models.backbone import forward_crops
from cvexp.models.simclr import NTXentLoss, ProjectionHead, alignment, pair_potential
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.pretraining import Pretraining, PretrainingConfig, pretrain
from cvexp.training.strategy import in_processes, normalized_together


@dataclass(kw_only=True)
class Config(PretrainingConfig):
    measures: ClassVar[tuple[str, ...]] = (*PretrainingConfig.measures, "alignment", "uniformity")

    size: int = number(2, unit="pixels")
    scale: list[float] = area_scale()
    flip: float = share()
    jitter: list[float] = color_jitter()
    jitter_probability: float = share()
    gray: float = share()
    blur: float = share()
    hidden_dim: int = number(1)
    out_dim: int = number(1)
    batch_norm: bool = MISSING
    temperature: float = number(above=0)


def main(config: RunConfig, run: ReadOnlyRun) -> float:
    """Pretrain, and return the metric that sweeps compare."""
    return pretrain(SimCLR, config, run)


class SimCLR(Pretraining):
    """Two views of an image shall have similar projections, and views of different images different ones.

    Shapes: b images, d dimensions of a projection.
    """

    encoder_name = "backbone"

    @property
    def task(self) -> Config:
        assert isinstance(self.config.task, Config)
        return self.config.task

    @classmethod
    def choose_sizes(cls, config: RunConfig) -> list[dict[str, int]]:
        task = config.task
        assert isinstance(task, Config)
        return [{"task.size": task.size, "task.eval_size": task.eval_size}]

    def make_networks(self, backbone: nn.Module, num_features: int) -> None:
        task = self.task
        size = f"loader.batch_size: got {self.config.loader.batch_size}{in_processes()}"
        size += f", with {self.num_samples} training crops, but "
        if min(self.config.loader.batch_size, self.num_samples) < 2:
            raise UserError(f"{size}SimCLR needs the views of at least 2 crops in a batch, to tell them apart")
        if task.batch_norm and normalized_together(self.config, self.num_samples) < 2:
            raise UserError(
                f"{size}the head's batch norm needs at least 2 crops in the batch of each process; choose a larger "
                "batch, or task.batch_norm=false"
            )
        self.backbone = backbone
        self.head = ProjectionHead(num_features, task.hidden_dim, task.out_dim, task.batch_norm)
        self.loss = NTXentLoss(task.temperature)

    def views(self) -> list[BatchView]:
        task = self.task
        view = View(
            size=task.size,
            scale=task.scale,
            flip=task.flip,
            jitter=task.jitter,
            jitter_probability=task.jitter_probability,
            gray=task.gray,
            blur=task.blur,
            solarize=0.0,
        )
        return [view, view]

    def crop_resolution(self) -> float:
        return max(self.task.size / math.sqrt(self.task.scale[0]), self.task.eval_size)

    def project(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the projections (b, d) of the first and of the second view of each image."""
        first_bd, second_bd = self.head(forward_crops(self.backbone, views)).chunk(2)
        return first_bd, second_bd

    def step(self, batch: tuple[list[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        views, _ = batch
        loss: Tensor = self.loss(*self.project(views))
        return loss, {}

    # Validation

    def evaluate(self, views: list[Tensor]) -> dict[str, Tensor]:
        first_bd, second_bd = self.project(views)
        return {
            "loss": self.loss(first_bd, second_bd),
            "alignment": alignment(first_bd, second_bd),
            "potential": pair_potential(first_bd),
        }

    def summarize(self, means: dict[str, Tensor]) -> dict[str, float]:
        return {"alignment": float(means["alignment"]), "uniformity": float(means["potential"].log())}

    def collapse_warnings(self, measures: dict[str, float]) -> list[str]:
        if measures["uniformity"] <= -0.1:
            return []
        return [
            f"all images have nearly the same projection (uniformity {measures['uniformity']:.3f}; 0 is a complete "
            "collapse); lower optimizer.lr, or use a larger loader.batch_size, or with few images a smaller one, which "
            "makes more steps"
        ]

    def describe_collapse(self) -> str:
        num_views = 2 * min(self.config.loader.batch_size, self.num_samples)
        return f"{math.log(num_views - 1):.3f} for a full training batch if all images have the same projection"


Method = SimCLR
