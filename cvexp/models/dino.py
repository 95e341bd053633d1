"""DINO: self-distillation with no labels (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
https://arxiv.org/abs/2104.14294).

Shapes: v views, t of them global (the teacher's), b images, k outputs of the head.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.backbone import forward_crops


class DINOHead(nn.Module):
    """The projection head: a three-layer perceptron, a bottleneck on the unit sphere, a weight-normed last layer.

    The last layer's rows have length one and no gain to learn, so that each output is the cosine between the
    bottleneck and a prototype (section 3.1 and appendix C of the paper).

    Args:
        in_dim: Length of the backbone's features.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Length of the vector that is normalized.
        out_dim: How many prototypes, k.
        batch_norm: Normalize the hidden layers over the batch; helps convolutional backbones on little data.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, bottleneck_dim: int, out_dim: int, batch_norm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_dim, hidden_dim):
            layers.append(nn.Linear(width, hidden_dim, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden_dim))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.last_layer = nn.Parameter(torch.randn(out_dim, bottleneck_dim))

    def forward(self, x_nd: Tensor) -> Tensor:
        """(n, in_dim) features to (n, out_dim) logits in [-1, 1]."""
        bottleneck = F.normalize(self.mlp(x_nd), dim=-1)
        prototypes = F.normalize(self.last_layer, dim=-1)
        return F.linear(bottleneck, prototypes.to(bottleneck.dtype))


class DINOLoss(nn.Module):
    """Cross-entropy between the teacher's and the student's view of the same image (equations 1 to 4 of the paper).

    The teacher's output is centered, against the collapse to one prototype, and sharpened by a low temperature, against
    the collapse to all prototypes alike. The center follows the mean of the teacher's logits over the batch, and over
    all processes where there are several.

    Args:
        out_dim: How many prototypes, k.
        student_temperature: Divides the student's logits.
        center_momentum: How much of the old center stays at each update; 1 keeps the center at 0, so none is taken.
    """

    center: Tensor

    def __init__(self, out_dim: int, student_temperature: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(out_dim))

    def forward(self, teacher_tbk: Tensor, student_vbk: Tensor, teacher_temperature: float) -> Tensor:
        """The loss of a batch, a scalar in nats.

        Args:
            teacher_tbk: The teacher's logits of the t global views.
            student_vbk: The student's logits of all v views, the global ones first and in the same order.
            teacher_temperature: Divides the teacher's centered logits.

        Raises:
            ValueError: when there is no pair of different views.
        """
        global_views, views = len(teacher_tbk), len(student_vbk)
        if not 1 <= global_views <= views or views < 2:
            raise ValueError(f"got {global_views} teacher and {views} student views; they must hold a pair to compare")
        p_tbk = self.teacher_probabilities(teacher_tbk, teacher_temperature)
        log_q_vbk = F.log_softmax(student_vbk.float() / self.student_temperature, dim=-1)
        with torch.autocast(student_vbk.device.type, enabled=False):  # which would sum the products in bfloat16
            cross_entropy_tv = -torch.einsum("tbk,vbk->tv", p_tbk, log_q_vbk) / student_vbk.shape[1]
        same_view_tv = torch.eye(global_views, views, dtype=torch.bool, device=student_vbk.device)
        return cross_entropy_tv.masked_fill(same_view_tv, 0).sum() / (global_views * (views - 1))

    @torch.no_grad()
    def teacher_probabilities(self, teacher_tbk: Tensor, teacher_temperature: float) -> Tensor:
        """The teacher's centered and sharpened distribution over the prototypes, in float32."""
        return F.softmax((teacher_tbk.float() - self.center) / teacher_temperature, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_tbk: Tensor) -> None:
        """Move the center towards the mean of the teacher's logits, over all processes."""
        batch_center = teacher_tbk.float().mean(dim=(0, 1))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(batch_center)
            batch_center /= dist.get_world_size()
        self.center.lerp_(batch_center, 1 - self.center_momentum)


class DINONetwork(nn.Module):
    """A backbone and its projection head: what student and teacher both are."""

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: list[Tensor]) -> Tensor:
        """Logits (v, b, k) of v views, each (b, 3, h, w); views of equal resolution must be neighbors."""
        logits: Tensor = self.head(forward_crops(self.backbone, views))
        return logits.view(len(views), -1, logits.shape[-1])


def make_teacher(student: DINONetwork) -> DINONetwork:
    """A copy of the student that no gradient reaches."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: teacher = momentum * teacher + (1 - momentum) * student.

    Buffers (the statistics of batch norm) stay the teacher's own: it gathers them from the global crops that it sees.
    """
    teachers = [parameter.detach() for parameter in teacher.parameters()]
    torch._foreach_lerp_(teachers, [parameter.detach() for parameter in student.parameters()], 1 - momentum)
