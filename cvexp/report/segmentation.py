"""Pictures of segmentations: image, label, prediction, and where the attention lay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colors, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from cvexp.data.augment import fit
from cvexp.data.index import BACKGROUND, IGNORE, Index
from cvexp.models.segmenters import Prediction
from cvexp.report.style import STYLE, color

SIDE = 1.9  # inches of a picture


@dataclass(frozen=True)
class Example:
    """One image and what was said of it, without what lies beside the image.

    Attributes:
        image: (h, w, 3) from 0 to 1.
        labels: (h, w), 0 background, then the classes, 255 ignored.
        predicted: (h, w).
        presence: (c,), how probable it is that each class is there.
        attention: (c, h, w), the mean over the heads, or None.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    presence: NDArray[np.float32]
    attention: NDArray[np.float32] | None

    @property
    def shown_class(self) -> int:
        """The class with most labelled pixels, counted from 0."""
        values = self.labels[(self.labels != BACKGROUND) & (self.labels != IGNORE)]
        return int(np.bincount(values).argmax()) - 1 if len(values) else 0


def example(index: Index, position: int, image: Tensor, labels: Tensor, prediction: Prediction, number: int) -> Example:
    """The picture of a validation image.

    Args:
        index, position: Where it comes from.
        image, labels: As the model got them, but not normalised: (3, h, w) uint8 and (h, w).
        prediction: Of its batch.
        number: Its place there.
    """
    width, height = fit(index.size(int(index.images[position])), labels.shape[-1])
    pixels = image.permute(1, 2, 0).float().div(255).cpu().numpy()
    attention = None
    if prediction.attention is not None:
        maps = prediction.attention[number].float().mean(dim=1)[None]
        attention = interpolate(maps, size=labels.shape, mode="bilinear", align_corners=False)[0].cpu().numpy()
        attention = attention[:, :height, :width]
    return Example(
        image=pixels[:height, :width],
        labels=labels.cpu().numpy().astype(np.uint8)[:height, :width],
        predicted=prediction.labels[number].cpu().numpy().astype(np.uint8)[:height, :width],
        presence=prediction.presence[number].float().cpu().numpy(),
        attention=attention,
    )


class Captioned(NamedTuple):
    """A picture of `grid` with a line below it."""

    picture: Any
    caption: str


def predictions(examples: Sequence[Example], classes: Sequence[str], when: str) -> Figure:
    """Image, label and prediction, a row for each example."""
    rows = [(None, {"image": e.image, "label": e.labels, "prediction": e.predicted}) for e in examples]
    return grid(rows, classes, f"validation images, {when}")


def attention(examples: Sequence[Example], classes: Sequence[str], when: str) -> Figure:
    """Where the attention of each class lies in each image, whether the class is there or not."""
    with rc_context(STYLE):
        figure, axes = _axes(len(examples), 1 + len(classes))
        for row, e in zip(axes, examples, strict=True):
            _show(row[0], e.image)
            assert e.attention is not None
            for i, name in enumerate(classes):
                show_attention(row[1 + i], e.image, e.attention[i])
                there = bool((e.labels == i + 1).any())
                title = f"{name}: {'there' if there else 'not there'}\nsaid {e.presence[i]:.2f}"
                row[1 + i].set_title(title, fontsize=8, color="black" if there else "gray")
        figure.suptitle(f"attention, mean of the heads, {when}; brighter is more", fontsize=11)
    return figure


def grid(rows: Sequence[tuple[str | None, Mapping[str, Any]]], classes: Sequence[str], title: str) -> Figure:
    """Rows of pictures, each with the same named columns, and the classes' colours below.

    Args:
        rows: A caption or None, and the pictures: an image (h, w, 3), a label map (h, w) uint8, a pair of an image and
            an attention map (h, w), or one of these in a `Captioned`.
        classes: Their names.
        title: Of all.
    """
    columns = list(rows[0][1])
    with rc_context(STYLE):
        figure, axes = _axes(len(rows), len(columns))
        for (caption, shown), row in zip(rows, axes, strict=True):
            for name, at in zip(columns, row, strict=True):
                picture = shown[name]
                if isinstance(picture, Captioned):
                    at.set_xlabel(picture.caption, fontsize=8)
                    picture = picture.picture
                if isinstance(picture, tuple):
                    show_attention(at, *picture)
                else:
                    _show(at, picture)
            if caption:
                row[0].set_ylabel(caption, fontsize=9)
        for name, at in zip(columns, axes[0], strict=True):
            at.set_title(name, fontsize=10)
        figure.suptitle(title, fontsize=11)
        handles = [Patch(color=color(i), label=name) for i, name in enumerate(classes)]
        beside = Patch(facecolor="white", edgecolor="gray", hatch="///", label="ignored")
        across = max(2, 2 * len(columns))
        lines = -(-(len(handles) + 1) // across)
        figure.legend(handles=[*handles, beside], loc="outside lower center", ncols=across, fontsize=9)
        figure.set_figheight(figure.get_figheight() + 0.25 * lines)
    return figure


def show_attention(axes: Axes, image: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
    """An attention map over a grey image, from the least to the largest of its weights."""
    _show(axes, np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1) * 0.6 + 0.4)
    axes.imshow(weights, cmap="inferno", alpha=0.75, vmin=float(weights.min()), vmax=float(weights.max()) + 1e-12)


def _axes(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(SIDE * columns, SIDE * rows + 0.4), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axes: Axes, picture: NDArray[Any]) -> None:
    """An image, or a label map in the classes' colours: the background light grey, ignored pixels hatched."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if picture.ndim == 3:
        axes.imshow(picture)
        return
    values = np.unique(picture[(picture != IGNORE)])
    shown = np.ones((*picture.shape, 3))
    for value in values:
        shown[picture == value] = colors.to_rgb("#E8E8E8" if value == BACKGROUND else color(int(value) - 1))
    axes.imshow(shown, interpolation="nearest")
    if (ignored := picture == IGNORE).any():
        axes.contourf(ignored.astype(float), levels=[0.5, 1.5], colors="none", hatches=["/////"])
