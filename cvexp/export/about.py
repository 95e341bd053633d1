"""What an exported file says about itself: JSON under the key `cvexp`, the same in all formats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvexp.colors import color_of_label
from cvexp.errors import UserError
from cvexp.export.subject import Subject
from cvexp.inference.embedder import Embedder
from cvexp.inference.networks import method_of
from cvexp.inference.segmenter import Segmenter
from cvexp.models.arguments import Needs
from cvexp.models.backbone import ALIASES
from cvexp.weights.backbone import choose_arguments
from cvexp.weights.start import Start

KEY = "cvexp"
PACKAGES = ("cvexp", "torch", "timm", "onnx", "onnxscript")
MAX_LENGTH = 1 << 20  # characters of JSON that are read

About = dict[str, Any]


def describe(subject: Subject, run_id: str, checkpoint: str, fingerprints: Mapping[str, str]) -> About:
    """Describe a network. The writer of a file adds `dynamic` and `digest`.

    Args:
        subject: The network.
        run_id: The run that trained it.
        checkpoint: ``"best"`` or ``"last"``.
        fingerprints: Fingerprint of the data, by split.
    """
    network, config = subject.network, subject.network.config
    name = config.backbone.name
    return {
        **(_of_segmenter(network) if isinstance(network, Segmenter) else _of_encoder(network)),
        "task": config.task.name,
        "backbone": ALIASES.get(name, name),
        "size": subject.size,
        "mean": list(config.dataset.mean),
        "std": list(config.dataset.std),
        "run": run_id,
        "checkpoint": checkpoint,
        "data": dict(fingerprints),
        "versions": versions(),
    }


def _of_segmenter(segmenter: Segmenter) -> About:
    size, classes = segmenter.size, list(segmenter.classes)
    background = "background" if segmenter.model.has_background else None
    return {
        "kind": "segmenter",
        "classes": classes,
        "labels": [background, *classes],
        "colors": [color_of_label(label) for label in range(1 + len(classes))],
        "activation": segmenter.model.activation,
        "preprocessing": {
            "description": f"Convert the image to RGB. Resize it with an antialiased bicubic filter so that its "
            f"longer side has {size} pixels. Put it into the top left corner of a black square of {size} x {size} "
            "pixels.",
            **_PIXELS,
            "resize": "longer_side",
            "place": "top_left_of_black_square",
        },
    }


def _of_encoder(embedder: Embedder) -> About:
    size, config = embedder.view.size, embedder.config
    sizes = method_of(config).build_backbone(config, Start()).sizes
    return {
        "kind": "encoder",
        "classes": [],
        "labels": [],
        "colors": [],
        "activation": None,
        "args": choose_arguments(config.backbone, Needs(sizes)),
        "preprocessing": {
            "description": f"Convert the image to RGB. Resize it with an antialiased bicubic filter so that its "
            f"shorter side has {size} pixels. Cut out the square of {size} x {size} pixels in its center.",
            **_PIXELS,
            "resize": "shorter_side",
            "place": "center_square",
        },
    }


_PIXELS = {"color_order": "RGB", "dtype": "uint8", "layout": "NCHW", "filter": "bicubic", "antialias": True}


def versions() -> dict[str, str]:
    """Return the versions of the packages that an exported file depends on, if they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def other_versions(about: About) -> str:
    """Describe which packages had other versions when a file was written; return "" if none had."""
    written = about.get("versions")
    known = {name: str(written.get(name))[:30] if isinstance(written, dict) else "unknown" for name in PACKAGES}
    return ", ".join(
        f"{name} {known[name]!r} instead of {now}" for name, now in versions().items() if known[name] != now
    )


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a digest of named arrays, which changes with every name, type, shape and value."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(json.dumps([name, str(array.dtype), list(arrays[name].shape)]).encode())
        total.update(array.data if array.size else b"")
    return f"sha256:{total.hexdigest()}"


def parse(text: str | None, name: str) -> About:
    """Read the description in a file, which is not trusted.

    Raises:
        UserError: if there is none.
    """
    try:
        about = json.loads(text or "") if len(text or "") <= MAX_LENGTH else None
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{name}: it is not a file that task=export wrote: it has no description under the key {KEY!r}")
    return about
