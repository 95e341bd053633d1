"""SimCLR: a simple framework for contrastive learning of visual representations (Chen et al.,
https://arxiv.org/abs/2002.05709).

Shapes: b images of this process, n rows, d dimensions of a projection.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather


class ProjectionHead(nn.Module):
    """The projection head g: a perceptron with one hidden layer (section 2.1 of the paper).

    Args:
        in_dim: Length of the backbone's features.
        hidden_dim: Width of the hidden layer.
        out_dim: Length of the projections, d.
        batch_norm: Whether the hidden layer is normalized over the batch.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, batch_norm: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(hidden_dim) if batch_norm else nn.Identity()
        hidden = nn.Linear(in_dim, hidden_dim, bias=not batch_norm)
        self.layers = nn.Sequential(hidden, norm, nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim))

    def forward(self, x_nd: Tensor) -> Tensor:
        """Map features (n, in_dim) to projections (n, out_dim)."""
        projections: Tensor = self.layers(x_nd)
        return projections


class NTXentLoss(nn.Module):
    """The normalized temperature-scaled cross-entropy loss (equation 1 of the paper).

    Two views of an image are a positive pair. The views of all other images of the batch are the negatives. In
    training mode, the batch is that of all processes, which have equal parts of it. In evaluation mode, it is that of
    this process, because each process evaluates other batches.

    Args:
        temperature: Divides the cosine similarities.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, first_bd: Tensor, second_bd: Tensor) -> Tensor:
        """Compute the mean loss of all positive pairs of this process, a scalar in nats.

        Args:
            first_bd: Projections of the first view of each image.
            second_bd: Projections of the second view of each image.
        """
        with torch.autocast(first_bd.device.type, enabled=False):  # which would compute similarities in bfloat16
            first_bd, second_bd = F.normalize(first_bd.float(), dim=-1), F.normalize(second_bd.float(), dim=-1)
            all_first_nd, all_second_nd, rank = self._gather(first_bd, second_bd)
            queries_nd = torch.cat([first_bd, second_bd])
            keys_nd = torch.cat([all_first_nd, all_second_nd])
            logits_nn = queries_nd @ keys_nd.T / self.temperature
            own_b = rank * len(first_bd) + torch.arange(len(first_bd), device=first_bd.device)
            other_b = own_b + len(all_first_nd)
            own_n, positive_n = torch.cat([own_b, other_b]), torch.cat([other_b, own_b])
            logits_nn = logits_nn.scatter(1, own_n[:, None], -torch.inf)  # a view is no negative of itself
            return F.cross_entropy(logits_nn, positive_n)

    def _gather(self, first_bd: Tensor, second_bd: Tensor) -> tuple[Tensor, Tensor, int]:
        """Gather the projections of all processes, keeping gradients; return them with the rank of this process."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return first_bd, second_bd, 0
        gathered = (torch.cat(list(all_gather(views))) for views in (first_bd, second_bd))
        return *gathered, dist.get_rank()  # type: ignore[return-value]


def alignment(first_bd: Tensor, second_bd: Tensor) -> Tensor:
    """Compute the mean squared distance of the two views of an image on the unit sphere; 0 if they coincide.

    Wang and Isola, https://arxiv.org/abs/2005.10242, equation 1.
    """
    distances = F.normalize(first_bd.double(), dim=-1) - F.normalize(second_bd.double(), dim=-1)
    return distances.square().sum(-1).mean()


def pair_potential(x_bd: Tensor) -> Tensor:
    """Compute the mean Gaussian potential of pairs of different rows on the unit sphere, exp(-2 distance^2).

    It is 1 if all rows coincide. Its logarithm is the uniformity (Wang and Isola, equation 2).
    """
    if len(x_bd) < 2:
        return torch.ones((), dtype=torch.float64, device=x_bd.device)
    return torch.pdist(F.normalize(x_bd.double(), dim=-1)).square().mul(-2).exp().mean()
