"""Measures of collapse. The loss alone does not reveal a collapse, because it may decrease all the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def entropy(p_nk: Tensor) -> Tensor:
    """Compute the mean entropy of the rows in nats: 0 for one-hot rows, ln k for uniform rows."""
    mean: Tensor = torch.special.entr(p_nk.double()).sum(-1).mean()
    return mean


def kl_from_uniform(p_k: Tensor) -> float:
    """Compute the KL divergence of a distribution from the uniform one, in nats.

    For the mean of the teacher's outputs, it is 0 if all prototypes are used equally often, and ln k if all images have
    the same prototype. (For a single output, it would just be ln k minus its entropy.)
    """
    return math.log(len(p_k)) - float(entropy(p_k))


def feature_std(x_nd: Tensor) -> float:
    """Compute the standard deviation of the l2-normalized features, averaged over the dimensions.

    It is about 1/sqrt(d) for features without collapse (Chen and He, "Exploring Simple Siamese Representation
    Learning", https://arxiv.org/abs/2011.10566, section 4.1).
    """
    return F.normalize(x_nd.double(), dim=-1).std(0, correction=0).mean().item()


def effective_rank(x_nd: Tensor) -> float:
    """Compute RankMe: the exponential of the entropy of the normalized singular values.

    It ranges from 1, if all features are multiples of one vector, to min(n, d) (Garrido et al., "RankMe",
    https://arxiv.org/abs/2210.02885, equation 1).
    """
    singular = torch.linalg.svdvals(x_nd.double())
    return math.exp(torch.special.entr(singular / singular.sum()).sum().item())


def teacher_warnings(measures: Mapping[str, float], out_dim: int) -> list[str]:
    """Return warnings about a collapse of the teacher's output; an empty list if there is no sign of it.

    Args:
        measures: `teacher_entropy` and `teacher_kl`.
        out_dim: Number of outputs of the head, k.
    """
    uniform = math.log(out_dim)
    warnings = []
    if measures["teacher_entropy"] > 0.99 * uniform:
        warnings.append(
            f"the teacher's output is uniform (entropy {measures['teacher_entropy']:.3f} of {uniform:.3f}), so it does "
            "not distinguish images; sharpen more (a lower task.teacher_temperature)"
        )
    if measures["teacher_kl"] > 0.9 * uniform:
        warnings.append(
            f"the teacher gives all images the same output (KL from uniform {measures['teacher_kl']:.3f} of "
            f"{uniform:.3f}); center more (a lower task.center_momentum) or sharpen less"
        )
    return warnings


def feature_warnings(measures: Mapping[str, float], feature_dim: int) -> list[str]:
    """Return warnings about a collapse of the features; an empty list if there is no sign of it.

    Args:
        measures: `feature_std` and `feature_rank`.
        feature_dim: Length of the features, d.
    """
    warnings = []
    if measures["feature_std"] * math.sqrt(feature_dim) < 0.05:
        warnings.append(
            f"all features point the same way (standard deviation {measures['feature_std']:.2g}, expected about "
            f"{1 / math.sqrt(feature_dim):.2g}); lower optimizer.lr"
        )
    if measures["feature_rank"] < 2:
        warnings.append(f"the features span hardly one dimension (effective rank {measures['feature_rank']:.2f})")
    return warnings
