"""Attention of classes over a feature map (Vaswani et al., "Attention Is All You Need",
https://arxiv.org/abs/1706.03762, section 3.2), without the sum over positions.

Shapes: b images, q queries, n heads, d channels of a head, c channels of a feature map of h x w positions, p = h * w.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCORES = ("scaled_dot_product", "dot_product", "additive", "cosine")
NORMALIZATIONS = ("softmax", "mean_one", "sigmoid")


class ClassAttention(nn.Module):
    """Attention whose queries are classes, and whose keys and values are the positions of a feature map.

    The attention weight of a class at position p is a(p) = softmax over p of score(query, key(p)). Standard attention
    returns the sum over all positions, a(1) v(1) + a(2) v(2) + .... A mask depends on the position, so this module
    returns the terms of the sum as a map: a(p) v(p) at each position p.

    Softmax weights sum to one, so their mean is 1 / p. On a map of 32 x 32 positions, this scales the values by
    1 / 1024, below the epsilon of the batch norm that follows. `normalization` selects how to compute the weights:

    * `softmax`: The plain softmax, as in the course.
    * `mean_one`: The softmax times p, so that the mean weight is one, whatever the size of the map.
    * `sigmoid`: The sigmoid of each score, from 0 to 1 independently of other positions. Unlike softmax weights, all
      weights can be close to 0, if the image does not contain the class.

    Args:
        num_classes: Number of classes.
        in_channels: Number of channels of the feature map.
        dim: Number of channels of queries, keys and values, over all heads.
        num_heads: Number of heads, each with `dim / num_heads` channels.
        score_function: Score of a query q and a key k: `scaled_dot_product`, q k / sqrt(d); `dot_product`, q k;
            `additive`, w tanh(q + k) (Bahdanau et al., https://arxiv.org/abs/1409.0473); `cosine`, cos(q, k) times a
            learned factor for each head.
        normalization: How to compute the weights from the scores; see above.

    Raises:
        ValueError: if `dim` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        dim: int,
        num_heads: int = 1,
        score_function: str = "scaled_dot_product",
        normalization: str = "sigmoid",
    ) -> None:
        super().__init__()
        if dim % num_heads != 0:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.num_classes = num_classes
        self.num_heads = num_heads
        self.score_function = score_function
        self.normalization = normalization
        self.query = nn.Linear(num_classes, dim, bias=False)
        self.key = nn.Linear(in_channels, dim)
        self.value = nn.Linear(in_channels, dim)
        # The input of the query layer is one-hot, so the query of a class is a column of the weight. The default
        # initialization would scale it down by the square root of the number of classes.
        nn.init.normal_(self.query.weight)
        if score_function == "additive":
            self.additive = nn.Parameter(torch.randn(num_heads, dim // num_heads) / math.sqrt(dim // num_heads))
        if score_function == "cosine":
            self.log_factor = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))

    def forward(self, x_bchw: Tensor, queries_bq: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the attended map and the attention weights of each query.

        Args:
            x_bchw: Feature maps (b, c, h, w).
            queries_bq: Classes to query for each image, counted from 0, (b, q) int64.

        Returns:
            The attended maps (b, q, dim, h, w), and the attention weights (b, q, n, h, w).
        """
        height, width = x_bchw.shape[-2:]
        x_bpc = x_bchw.flatten(2).transpose(1, 2)
        one_hot_bqc = F.one_hot(queries_bq, self.num_classes).to(x_bpc.dtype)
        q_bnqd, k_bnpd, v_bnpd = map(self._split_heads, (self.query(one_hot_bqc), self.key(x_bpc), self.value(x_bpc)))
        a_bnqp = self.normalize(self.compute_scores(q_bnqd, k_bnpd))
        # In this order of dimensions, the result is in channels-last format, as the layers that follow expect it.
        a_bqpn = a_bnqp.permute(0, 2, 3, 1).contiguous()
        attended_bqpnd = a_bqpn[..., None] * v_bnpd.transpose(1, 2)[:, None]
        attended = attended_bqpnd.flatten(3).unflatten(2, (height, width)).movedim(-1, 2)
        return attended, a_bnqp.transpose(1, 2).unflatten(-1, (height, width))

    def compute_scores(self, q_bnqd: Tensor, k_bnpd: Tensor) -> Tensor:
        """Compute the score of each query and key, (b, n, q, p)."""
        scores_bnqp: Tensor
        if self.score_function == "additive":
            hidden_bnqpd = torch.tanh(q_bnqd[:, :, :, None] + k_bnpd[:, :, None])
            scores_bnqp = torch.einsum("bnqpd,nd->bnqp", hidden_bnqpd, self.additive.to(hidden_bnqpd.dtype))
        elif self.score_function == "cosine":
            scores_bnqp = self.log_factor.exp() * (F.normalize(q_bnqd, dim=-1) @ F.normalize(k_bnpd, dim=-1).mT)
        else:
            scores_bnqp = q_bnqd @ k_bnpd.mT
        if self.score_function == "scaled_dot_product":
            scores_bnqp = scores_bnqp / math.sqrt(q_bnqd.shape[-1])
        return scores_bnqp

    def normalize(self, scores_bnqp: Tensor) -> Tensor:
        """Compute attention weights from scores, over the positions."""
        if self.normalization == "sigmoid":
            return scores_bnqp.sigmoid()
        a_bnqp = scores_bnqp.softmax(dim=-1)
        return a_bnqp.mul(a_bnqp.shape[-1]) if self.normalization == "mean_one" else a_bnqp

    def _split_heads(self, x: Tensor) -> Tensor:
        """Split the channels of queries, keys or values (b, length, dim) into heads, (b, n, length, d)."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
