"""DINO: self-distillation with no labels (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
https://arxiv.org/abs/2104.14294).

Shapes: b images, v views of each, the first t of them global (the teacher sees only these), c channels, h x w pixels,
k prototypes (outputs of the head), n inputs of the head, d features.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.backbone import forward_crops


class DINOHead(nn.Module):
    """The projection head: a three-layer MLP, an l2-normalized bottleneck, and a weight-normalized last layer.

    The rows of the last layer have length one, without a learned gain, so each output is the cosine between the
    bottleneck and a prototype (section 3.1 and appendix C of the paper).

    Args:
        in_dim: Length of the backbone's features.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Length of the normalized vector.
        out_dim: Number of prototypes, k.
        batch_norm: Whether to add batch norm to the hidden layers, which helps convolutional backbones on small data.
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
        """Map features (n, in_dim) to logits (n, out_dim) in [-1, 1]."""
        bottleneck_nd = F.normalize(self.mlp(x_nd), dim=-1)
        prototypes_kd = F.normalize(self.last_layer, dim=-1)
        return F.linear(bottleneck_nd, prototypes_kd.to(bottleneck_nd.dtype))


class DINOLoss(nn.Module):
    """Cross-entropy between the teacher's and the student's output for different views (equations 1 to 4 of the paper).

    Centering the teacher's logits prevents the collapse to one prototype. Sharpening them with a low temperature
    prevents the collapse to a uniform output. The center is a moving average of the mean of the teacher's logits over
    the batch and all processes.

    Args:
        out_dim: Number of prototypes, k.
        student_temperature: Divides the student's logits.
        center_momentum: Momentum of the moving average. With 1 the center stays 0, which disables centering.

    Attributes:
        center: (k,) float32.
    """

    center: Tensor

    def __init__(self, out_dim: int, student_temperature: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(out_dim))

    def forward(self, teacher_tbk: Tensor, student_vbk: Tensor, teacher_temperature: float) -> Tensor:
        """Compute the loss of a batch, a scalar in nats.

        Args:
            teacher_tbk: The teacher's logits of the t global views.
            student_vbk: The student's logits of all v views, starting with the global ones in the same order.
            teacher_temperature: Divides the teacher's centered logits.

        Raises:
            ValueError: if there is no pair of different views, or if the teacher has more views than the student.
        """
        num_global, num_views = len(teacher_tbk), len(student_vbk)
        if not 1 <= num_global <= num_views or num_views < 2:
            raise ValueError(
                f"got {num_global} teacher and {num_views} student views, but the student must have all views of the "
                "teacher, and there must be a pair of different views"
            )
        p_tbk = self.teacher_probabilities(teacher_tbk, teacher_temperature)
        log_q_vbk = F.log_softmax(student_vbk.float() / self.student_temperature, dim=-1)
        with torch.autocast(student_vbk.device.type, enabled=False):  # autocast would compute the sum in bfloat16
            cross_entropy_tv = -torch.einsum("tbk,vbk->tv", p_tbk, log_q_vbk) / student_vbk.shape[1]
        same_view_tv = torch.eye(num_global, num_views, dtype=torch.bool, device=student_vbk.device)
        return cross_entropy_tv.masked_fill(same_view_tv, 0).sum() / (num_global * (num_views - 1))

    @torch.no_grad()
    def teacher_probabilities(self, teacher_tbk: Tensor, teacher_temperature: float) -> Tensor:
        """Compute the teacher's centered and sharpened distribution over the prototypes, (t, b, k) float32."""
        return F.softmax((teacher_tbk.float() - self.center) / teacher_temperature, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_tbk: Tensor) -> None:
        """Move the center towards the mean of the teacher's logits over the batch and all processes."""
        batch_center_k = teacher_tbk.float().mean(dim=(0, 1))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(batch_center_k)
            batch_center_k /= dist.get_world_size()
        self.center.lerp_(batch_center_k, 1 - self.center_momentum)


class DINONetwork(nn.Module):
    """A backbone and its projection head: the network of the student, and of the teacher.

    Args:
        backbone: Maps images to feature vectors.
        head: Maps feature vectors to logits.
    """

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: list[Tensor]) -> Tensor:
        """Map v views, each (b, 3, h, w), to logits (v, b, k). Views of equal resolution must be adjacent."""
        logits_nk: Tensor = self.head(forward_crops(self.backbone, views))
        return logits_nk.view(len(views), -1, logits_nk.shape[-1])


def make_teacher(student: DINONetwork) -> DINONetwork:
    """Return a copy of the student whose parameters require no gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: teacher = momentum * teacher + (1 - momentum) * student.

    Buffers, such as the statistics of batch norm, are not copied: the teacher computes its own from the global crops.
    """
    teacher_parameters = [parameter.detach() for parameter in teacher.parameters()]
    student_parameters = [parameter.detach() for parameter in student.parameters()]
    torch._foreach_lerp_(teacher_parameters, student_parameters, 1 - momentum)
