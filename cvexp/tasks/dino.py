"""`task=dino`: self-distillation with no labels (Caron et al., https://arxiv.org/abs/2104.14294)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from cvexp.config import RunConfig
from cvexp.console import print_line
from cvexp.data.augment.views import BatchView, View
from cvexp.errors import UserError
from cvexp.keys import area_scale, color_jitter, number, numbers, require, share
from cvexp.metrics import collapse
from cvexp.models.dino import DINOHead, DINOLoss, DINONetwork, make_teacher, update_teacher
from cvexp.models.schedules import cosine, warmup_constant
from cvexp.tracking.run import ReadOnlyRun
from cvexp.training.pretraining import Pretraining, PretrainingConfig, pretrain
from cvexp.training.strategy import in_processes, normalized_together

OF_VIEWS = "three probabilities: first global, other global, local views"


@dataclass(kw_only=True)
class Config(PretrainingConfig):
    measures: ClassVar[tuple[str, ...]] = (*PretrainingConfig.measures, "teacher_entropy", "teacher_kl")

    global_crops: int = number(1)
    global_size: int = number(2, unit="pixels")
    global_scale: list[float] = area_scale()
    local_crops: int = number(0)
    local_size: int | None = number(2, unit="pixels")
    local_scale: list[float] = area_scale()
    flip: float = share()
    jitter: list[float] = color_jitter()
    jitter_probability: float = share()
    gray: float = share()
    blur: list[float] = numbers(3, OF_VIEWS, at_least=0, at_most=1)
    solarize: list[float] = numbers(3, OF_VIEWS, at_least=0, at_most=1)
    hidden_dim: int = number(1)
    bottleneck_dim: int = number(1)
    out_dim: int = number(2)
    batch_norm: bool = MISSING
    freeze_last_layer: float = share()
    student_temperature: float = number(above=0)
    warmup_teacher_temperature: float = number(above=0)
    teacher_temperature: float = number(above=0)
    teacher_temperature_warmup: float = share()
    center_momentum: float = share()
    teacher_momentum: float = share()
    final_teacher_momentum: float = share()

    def __post_init__(self) -> None:
        require(
            self.global_crops + self.local_crops >= 2,
            "task.local_crops",
            self.local_crops,
            "large enough for at least two views in total, global and local",
        )


def main(config: RunConfig, run: ReadOnlyRun) -> float:
    """Pretrain, and return the metric that sweeps compare."""
    return pretrain(DINO, config, run)


class DINO(Pretraining):
    """A student learns to predict the output of a teacher, which is a moving average of the student.

    Shapes: v views, t of them global, b images, k outputs of the head.
    """

    encoder_name = "teacher.backbone"

    @property
    def task(self) -> Config:
        assert isinstance(self.config.task, Config)
        return self.config.task

    @classmethod
    def choose_sizes(cls, config: RunConfig) -> list[dict[str, int]]:
        """Prefer local views of half the size of the global ones, or else of the same size."""
        task = config.task
        assert isinstance(task, Config)
        sizes = {"task.global_size": task.global_size, "task.eval_size": task.eval_size}
        if not task.local_crops:
            return [sizes]
        local_sizes = [half_size(task), task.global_size] if task.local_size is None else [task.local_size]
        return [{**sizes, "task.local_size": size} for size in local_sizes]

    def make_networks(self, backbone: nn.Module, num_features: int) -> None:
        task = self.task
        self.local_size = self.sizes.get("task.local_size", task.local_size or half_size(task))
        if task.local_size is None and self.local_size != half_size(task):
            print_line(
                f"local views: {self.local_size} px, as {self.config.backbone.name} can't take {half_size(task)} px"
            )
        if task.batch_norm and task.global_crops * normalized_together(self.config, self.num_samples) < 2:
            raise UserError(
                f"loader.batch_size: got {self.config.loader.batch_size}{in_processes()}, but the batch norm of the "
                "teacher's head needs at least 2 global views in each process; choose a larger batch, or "
                "task.batch_norm=false"
            )
        head = DINOHead(num_features, task.hidden_dim, task.bottleneck_dim, task.out_dim, batch_norm=task.batch_norm)
        self.student = DINONetwork(backbone, head)
        self.teacher = make_teacher(self.student)
        self.loss = DINOLoss(task.out_dim, task.student_temperature, task.center_momentum)

    def views(self) -> list[BatchView]:
        """Return the global views, then the local ones."""
        task = self.task
        kinds = [0] + [1] * (task.global_crops - 1) + [2] * task.local_crops
        return [
            View(
                size=self.local_size if kind == 2 else task.global_size,
                scale=task.local_scale if kind == 2 else task.global_scale,
                flip=task.flip,
                jitter=task.jitter,
                jitter_probability=task.jitter_probability,
                gray=task.gray,
                blur=task.blur[kind],
                solarize=task.solarize[kind],
            )
            for kind in kinds
        ]

    def crop_resolution(self) -> float:
        task = self.task
        views = ((task.global_size, task.global_scale[0]), (self.local_size, task.local_scale[0]), (task.eval_size, 1))
        return max(size / math.sqrt(scale) for size, scale in views)

    # Training

    @classmethod
    def schedules(cls, config: RunConfig, done: float) -> dict[str, float]:
        task = config.task
        assert isinstance(task, Config)
        warmup, start, end = task.teacher_temperature_warmup, task.warmup_teacher_temperature, task.teacher_temperature
        return {
            **super().schedules(config, done),
            "teacher_temperature": warmup_constant(done, warmup, start, end),
            "teacher_momentum": cosine(done, task.teacher_momentum, task.final_teacher_momentum),
        }

    @classmethod
    def warmups(cls, config: RunConfig) -> dict[str, float]:
        task = config.task
        assert isinstance(task, Config)
        return {
            **super().warmups(config),
            "teacher_temperature is in its warm-up": task.teacher_temperature_warmup,
            "the student's last layer is frozen": task.freeze_last_layer,
        }

    @property
    def teacher_temperature(self) -> float:
        return self.schedules(self.config, self.done)["teacher_temperature"]

    def logits(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the teacher's logits for the global views (t, b, k), and the student's for all views (v, b, k)."""
        with torch.no_grad():
            teacher_tbk: Tensor = self.teacher(views[: self.task.global_crops])
        return teacher_tbk, self.student(views)

    def step(self, batch: tuple[list[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        views, _ = batch
        teacher_tbk, student_vbk = self.logits(views)
        loss: Tensor = self.loss(teacher_tbk, student_vbk, self.teacher_temperature)
        self.loss.update_center(teacher_tbk)
        return loss, {}

    def trained_network(self) -> nn.Module:
        return self.student

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.done < self.task.freeze_last_layer:
            self.student.head.last_layer.grad = None

    def after_optimizer_step(self, done: float) -> None:
        update_teacher(self.teacher, self.student, self.schedules(self.config, done)["teacher_momentum"])

    # Validation

    def evaluate(self, views: list[Tensor]) -> dict[str, Tensor]:
        teacher_tbk, student_vbk = self.logits(views)
        p_tbk = self.loss.teacher_probabilities(teacher_tbk, self.teacher_temperature)
        return {
            "loss": self.loss(teacher_tbk, student_vbk, self.teacher_temperature),
            "entropy": collapse.entropy(p_tbk.flatten(0, 1)),
            "probability_k": p_tbk.mean((0, 1)),
        }

    def summarize(self, means: dict[str, Tensor]) -> dict[str, float]:
        return {
            "teacher_entropy": float(means["entropy"]),
            "teacher_kl": collapse.kl_from_uniform(means["probability_k"]),
        }

    def collapse_warnings(self, measures: dict[str, float]) -> list[str]:
        return collapse.teacher_warnings(measures, self.task.out_dim)

    def describe_collapse(self) -> str:
        return f"{math.log(self.task.out_dim):.3f} if all outputs are uniform, and 0 if all images have the same output"


Method = DINO


def half_size(task: Config) -> int:
    """Return half the size of the global views, in pixels."""
    return max(2, task.global_size // 2)
