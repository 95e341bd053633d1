"""cvexp: self-supervised pretraining and segmentation experiments, recorded in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvexp.config import RunConfig

__all__ = ["compose"]
__version__ = "0.1.0"


def compose(*overrides: str) -> RunConfig:
    """Compose a configuration from overrides, as ``python -m cvexp`` does.

    Args:
        overrides: For example ``"task=dino"``, ``"optimizer.lr=1e-3"``.

    Raises:
        cvexp.errors.UserError: if an override names an unknown key or group, or a value is missing, of a wrong type
            or out of range.
    """
    from cvexp import composition  # imports Hydra, which `import cvexp` does not need

    return composition.compose(*overrides)
