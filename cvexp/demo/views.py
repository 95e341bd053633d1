"""What the page shows of a photo: pictures, and the table of classes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cvexp.colors import color
from cvexp.inference.segmenter import Segmenter
from cvexp.report.overlays import heat, overlay
from cvexp.report.style import shorten

PRESENT = 0.5  # probability below which a class is shown faintly
MAX_NAMES = 8  # classes that the title of the page lists


@dataclass(frozen=True)
class View:
    """What the page shows of a photo.

    Attributes:
        labels: The photo with the colors of the classes, or of the chosen one.
        probability: The probability of the chosen class at each pixel, from 0 (dark) to 1 (bright); None if none is
            chosen.
        attention: The attention map of the chosen class; None if none is chosen, or the network has no attention.
        table: HTML with the color of each class, and the probability that the photo contains the class.
    """

    labels: Image.Image
    probability: Image.Image | None
    attention: Image.Image | None
    table: str


def look(segmenter: Segmenter, photo: Image.Image, chosen: str | None) -> View:
    """Segment a photo.

    Args:
        segmenter: The network.
        photo: The photo.
        chosen: The class to look at; None for all of them. A network that is queried for classes is then queried only
            for this one.
    """
    queried = None if chosen is None or not segmenter.model.can_query else [chosen]
    segmentation = segmenter.predict(photo, classes=queried)
    pixels, labels = np.asarray(photo), segmentation.labels
    table = legend(segmenter.classes, segmentation.presence)
    if chosen is None:
        return View(overlay(pixels, labels), None, None, table)
    mask = np.where(labels == 1 + segmenter.classes.index(chosen), labels, 0)
    return View(
        labels=overlay(pixels, mask),
        probability=heat(pixels, segmentation.probability(chosen), limits=(0.0, 1.0)),
        attention=heat(pixels, segmentation.attention(chosen)) if segmentation.has_attention else None,
        table=table,
    )


def legend(classes: Sequence[str], presence: dict[str, float]) -> str:
    """Return HTML with the color of each class that was queried, and the probability that a photo contains it."""
    rows = "".join(
        f'<li{"" if presence[name] >= PRESENT else " class=absent"}><i style="background:{color(label)}"></i>'
        f"<span>{html.escape(shorten(name))}</span><b>{presence[name]:.2f}</b></li>"
        for label, name in enumerate(classes)
        if name in presence
    )
    return f'<p>Probability that the photo contains the class</p><ul class="legend">{rows}</ul>'


def heading(name: str, task: str, classes: Sequence[str], score: str) -> str:
    """Return HTML with the title of the page and the facts about the network.

    Args:
        name: The name of the run or of the registered model.
        task: The task that trained the network.
        classes: Class names.
        score: What is known about its accuracy; may be empty.
    """
    listed = ", ".join(shorten(other) for other in classes[:MAX_NAMES])
    more = f" and {len(classes) - MAX_NAMES} more" if len(classes) > MAX_NAMES else ""
    facts = [f"task {task}", f"{len(classes)} class{'es' * (len(classes) > 1)}: {listed}{more}", score]
    return f"<h1>{html.escape(shorten(name, 80))}</h1><p>{html.escape(' · '.join(filter(None, facts)))}</p>"
