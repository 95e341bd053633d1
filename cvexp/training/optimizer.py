"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from cvexp.config import OptimizerConfig
from cvexp.errors import UserError
from cvexp.keys import require_one_of

FUSED = ("Adam", "AdamW", "SGD")  # can update all parameters in one kernel, on a CPU and on GPUs
VARIANTS = {"fused", "foreach", "capturable", "differentiable"}  # arguments that exclude each other


def make_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    lr_factors: Mapping[nn.Module, float] | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Create the optimizer of a model's trainable parameters, without weight decay on biases and norms.

    Args:
        model: The network to train.
        config: Names a class of `torch.optim` and its arguments.
        lr_factors: Learning rate factors for parts of the model.
        fused: Whether to update all parameters in one kernel, which is faster, if the optimizer can do this.

    Raises:
        UserError: if torch.optim has no such optimizer, or the optimizer refuses the arguments.
    """
    optimizers = {name for name, cls in vars(torch.optim).items() if isinstance(cls, type) and name != "Optimizer"}
    require_one_of("optimizer.name", config.name, optimizers)
    factor_of = {id(p): factor for part, factor in (lr_factors or {}).items() for p in part.parameters()}
    by_kind: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            by_kind.setdefault((factor_of.get(id(parameter), 1.0), parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": parameters, "lr_factor": factor, "decays": decays}
        for (factor, decays), parameters in by_kind.items()
    ]
    args = dict(config.args)
    if fused and config.name in FUSED and not VARIANTS & args.keys():
        args["fused"] = True
    try:
        optimizer = getattr(torch.optim, config.name)(groups, lr=config.lr, weight_decay=0.0, **args)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.args: {config.name} refuses {config.args}: {error}") from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer
