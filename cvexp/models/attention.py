"""Attention of a class over a feature map (Vaswani et al., "Attention Is All You Need",
https://arxiv.org/abs/1706.03762, section 3.2), with the values kept where they are instead of summed.

Shapes: b images, q classes asked for, n heads, d channels of a head, p = h w positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCORES = ("scaled_dot_product", "dot_product", "additive", "cosine")
NORMALIZATIONS = ("softmax", "mean_one", "sigmoid")


class ClassAttention(nn.Module):
    """A class, one-hot, asks a feature map where it is.

    The attention of a class is a(p) = softmax over p of score(query, key(p)). Its sum over all positions, the vector
    a(1) v(1) + a(2) v(2) + ..., is what attention usually gives. A mask needs to know where, so here the terms stay
    apart: the attended map is a(p) v(p), and its sum is the usual result.

    The weights of a softmax sum to one, so their mean is 1 / p, and a map of 32 x 32 values would shrink a thousand
    times: less than the epsilon of the batch norm that follows. `normalization` says what is done about it:

    * `softmax`: nothing; what the course did.
    * `mean_one`: the weights are multiplied by p, whatever the map's size: then their mean is one.
    * `sigmoid`: each position is judged by itself, from 0 to 1. Unlike a softmax, which must put its weight somewhere,
      it can say that the class is nowhere.

    Args:
        classes: How many there are.
        in_channels: Of the feature map.
        dim: Of queries, keys and values, all heads together.
        heads: How many independent attentions share `dim`.
        kind: How a key is scored: `scaled_dot_product`, q k / sqrt(d); `dot_product`, q k; `additive`,
            w tanh(q + k) (Bahdanau et al., arXiv 1409.0473); `cosine`, cos(q, k) times a learned factor of each head.
        normalization: Of the scores; see above.

    Raises:
        ValueError: when the heads don't divide `dim`.
    """

    def __init__(
        self,
        classes: int,
        in_channels: int,
        dim: int,
        heads: int = 1,
        kind: str = "scaled_dot_product",
        normalization: str = "sigmoid",
    ) -> None:
        super().__init__()
        if dim % heads != 0:
            raise ValueError(f"{heads} heads don't divide {dim} channels")
        self.classes = classes
        self.heads = heads
        self.kind = kind
        self.normalization = normalization
        self.query = nn.Linear(classes, dim, bias=False)  # of a one-hot class: its column is the class's query
        self.key = nn.Linear(in_channels, dim)
        self.value = nn.Linear(in_channels, dim)
        nn.init.normal_(self.query.weight)  # Linear's own would make it small with many classes, though one is hot
        if kind == "additive":
            self.additive = nn.Parameter(torch.randn(heads, dim // heads) / math.sqrt(dim // heads))
        if kind == "cosine":
            self.log_factor = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))

    def forward(self, x_bchw: Tensor, asked_bq: Tensor) -> tuple[Tensor, Tensor]:
        """Attend once for each class asked for.

        Args:
            x_bchw: Feature maps (b, c, h, w).
            asked_bq: The classes asked of each image, counted from 0, (b, q) int64.

        Returns:
            The attended maps (b, q, dim, h, w), and the weights (b, q, heads, h, w).
        """
        height, width = x_bchw.shape[-2:]
        x_bpc = x_bchw.flatten(2).transpose(1, 2)
        one_hot = F.one_hot(asked_bq, self.classes).to(x_bpc.dtype)
        q_bnqd, k_bnpd, v_bnpd = map(self._split_heads, (self.query(one_hot), self.key(x_bpc), self.value(x_bpc)))
        a_bnqp = self.normalize(self.score(q_bnqd, k_bnpd))
        attended_bnqpd = a_bnqp[..., None] * v_bnpd[:, :, None]
        attended = attended_bnqpd.permute(0, 2, 1, 4, 3).flatten(2, 3).unflatten(-1, (height, width))
        return attended, a_bnqp.transpose(1, 2).unflatten(-1, (height, width))

    def score(self, q_bnqd: Tensor, k_bnpd: Tensor) -> Tensor:
        """How well each key answers each query, (b, n, q, p)."""
        scores: Tensor
        if self.kind == "additive":
            hidden = torch.tanh(q_bnqd[:, :, :, None] + k_bnpd[:, :, None])
            scores = torch.einsum("bnqpd,nd->bnqp", hidden, self.additive.to(hidden.dtype))
        elif self.kind == "cosine":
            scores = self.log_factor.exp() * (F.normalize(q_bnqd, dim=-1) @ F.normalize(k_bnpd, dim=-1).mT)
        else:
            scores = q_bnqd @ k_bnpd.mT
        if self.kind == "scaled_dot_product":
            scores = scores / math.sqrt(q_bnqd.shape[-1])
        return scores

    def normalize(self, score_bnqp: Tensor) -> Tensor:
        """Scores to weights, over the positions."""
        if self.normalization == "sigmoid":
            return score_bnqp.sigmoid()
        a_bnqp = score_bnqp.softmax(dim=-1)
        return a_bnqp.mul(a_bnqp.shape[-1]) if self.normalization == "mean_one" else a_bnqp

    def _split_heads(self, x_bsd: Tensor) -> Tensor:
        return x_bsd.view(*x_bsd.shape[:2], self.heads, -1).transpose(1, 2)
