"""Figures of segmentations: images, labels, predictions, and attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import colors, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from cvexp.colors import color, color_of_label
from cvexp.data.augment.labeled import fit
from cvexp.data.index import BACKGROUND, IGNORE, Index
from cvexp.report.style import NARROW, PAGE, SMALL, STYLE, add_legend, drawable

if TYPE_CHECKING:
    from cvexp.models.segmenters import Prediction

SIDE = (0.55, 0.78)  # inches, the smallest and largest side of a picture
MAX_QUERIES = 8  # classes in one figure


@dataclass(frozen=True)
class Example:
    """An image and its prediction, without the padding. Shapes: h x w pixels, c classes without the background.

    Attributes:
        image: (h, w, 3), from 0 to 1.
        labels: (h, w), 0 background, then the classes, 255 ignored.
        predicted: (h, w).
        presence: (c,), the predicted probability that the image contains each class.
        probability: (c, h, w), the predicted probability that each pixel belongs to each class.
        attention: (c, heads, h', w') over the padded image; None if the model has no attention.
        padded_size: Height and width of the padded image in pixels.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    presence: NDArray[np.float32]
    probability: NDArray[np.float16]
    attention: Tensor | None
    padded_size: tuple[int, int]

    def attention_of(self, label: int, head: int | None = None) -> NDArray[np.float32]:
        """Return the attention map (h, w) of a class, for one head or averaged over the heads."""
        assert self.attention is not None
        small = self.attention[label].mean(dim=0) if head is None else self.attention[label, head]
        large = interpolate(small[None, None], size=self.padded_size, mode="bilinear", align_corners=False)[0, 0]
        height, width = self.image.shape[:2]
        return large.numpy()[:height, :width]

    def is_present(self, label: int) -> bool:
        """Return whether any pixel is labeled with a class, counted from 0."""
        return bool((self.labels == label + 1).any())

    @property
    def main_class(self) -> int:
        """The class with the most labeled pixels, counted from 0; 0 if there is none."""
        values = self.labels[(self.labels != BACKGROUND) & (self.labels != IGNORE)]
        return int(np.bincount(values).argmax()) - 1 if len(values) else 0


def make_example(
    index: Index, position: int, image: Tensor, labels: Tensor, prediction: Prediction, number: int
) -> Example:
    """Create the example of an image.

    Args:
        index: The index of the images.
        position: Position of the image in the index.
        image: (3, h, w) uint8, as the model got it, but not normalized.
        labels: (h, w).
        prediction: The prediction for the batch of the image.
        number: Position of the image in the batch.
    """
    width, height = fit(index.size(int(index.images[position])), labels.shape[-1])
    pixels = image.permute(1, 2, 0).float().div(255).cpu().numpy()
    return Example(
        image=pixels[:height, :width],
        labels=labels.cpu().numpy().astype(np.uint8)[:height, :width],
        predicted=prediction.labels[number].cpu().numpy().astype(np.uint8)[:height, :width],
        presence=prediction.presence[number].float().cpu().numpy(),
        probability=prediction.probability[number, :, :height, :width].half().cpu().numpy(),
        attention=None if prediction.attention is None else prediction.attention[number].float().cpu(),
        padded_size=(labels.shape[0], labels.shape[1]),
    )


class Captioned(NamedTuple):
    """A picture of `grid` with a line of text below it."""

    picture: Any
    caption: str


def predictions(examples: Sequence[Example], classes: Sequence[str], state: str) -> Figure:
    """Draw image, label and prediction, with a row for each example.

    Args:
        examples: The examples.
        classes: Class names.
        state: The state of training, for the title.
    """
    rows = [(None, {"image": e.image, "label": e.labels, "prediction": e.predicted}) for e in examples]
    return grid(rows, classes, f"validation images, {state}")


def attention(examples: Sequence[Example], classes: Sequence[str], state: str) -> Figure:
    """Draw the attention map of each class, averaged over the heads, with a row for each example.

    The title of a map says whether the image contains the class, and shows the predicted probability p that it does.

    Args:
        examples: The examples.
        classes: Class names.
        state: The state of training, for the title.
    """
    with rc_context(STYLE):
        figure, axes = _subplots([e.image for e in examples], 1 + len(classes), text_above=0.4)
        for row, e in zip(axes, examples, strict=True):
            _show(row[0], e.image)
            for i, name in enumerate(classes):
                _show_attention(row[1 + i], e.image, e.attention_of(i))
                title = f"{drawable(name, NARROW)}\n{_presence(e, i)}\np = {e.presence[i]:.2f}"
                row[1 + i].set_title(title, fontsize=SMALL, color="black" if e.is_present(i) else "gray")
        figure.suptitle(f"attention, mean of the heads, {state}; brighter is more")
    return figure


def heads(captioned: Sequence[tuple[str, Example]], classes: Sequence[str], title: str) -> Figure:
    """Draw the attention map of each head for two classes: the largest one in the image, and an absent one.

    Args:
        captioned: Captions of the rows, and their examples.
        classes: Class names.
        title: Title of the figure.
    """
    assert captioned[0][1].attention is not None
    num_heads = captioned[0][1].attention.shape[1]
    rows: list[tuple[str | None, dict[str, Any]]] = []
    for caption, e in captioned:
        absent = [i for i in range(len(classes)) if not e.is_present(i)]
        has_present = len(absent) < len(classes)
        row: dict[str, Any] = {"image": e.image, "label": e.labels, "prediction": e.predicted}
        queries = {"present": e.main_class if has_present else None, "absent": absent[0] if absent else None}
        for presence, label in queries.items():
            for head in range(num_heads):
                column = f"{presence}\nhead {head + 1}" if num_heads > 1 else presence
                if label is None:
                    row[column] = Captioned(e.image, "all present" if has_present else "none present")
                else:
                    row[column] = Captioned((e.image, e.attention_of(label, head)), drawable(classes[label], NARROW))
        rows.append((caption, row))
    return grid(rows, classes, title)


def one_after_another(e: Example, classes: Sequence[str], title: str) -> Figure:
    """Draw the attention map, the probability of each pixel, and the mask for a query of each class in one image.

    Each column shows whether the image contains the class, and the predicted probability p that it does. Classes
    in the image come first, and others fill the rest of the figure.

    Args:
        e: The example.
        classes: Class names.
        title: Title of the figure.
    """
    shown = sorted(sorted(range(len(classes)), key=lambda i: not e.is_present(i))[:MAX_QUERIES])
    with rc_context(STYLE):
        figure, axes = _subplots([e.image] * 3, 1 + len(shown), text_beside=0.3)
        rows: dict[str, NDArray[Any]] = {"image": e.image, "label": e.labels, "prediction": e.predicted}
        for ax, (name, picture) in zip(axes[:, 0], rows.items(), strict=True):
            _show(ax, picture)
            ax.set_ylabel(name, fontsize=SMALL)
        for column, i in zip(axes.T[1:], shown, strict=True):
            _show_attention(column[0], e.image, e.attention_of(i))
            _show(column[1], np.repeat(e.probability[i][..., None], 3, axis=-1))
            _show(column[2], np.where(e.probability[i] > 0.5, i + 1, BACKGROUND).astype(np.uint8))
            column[0].set_title(f"{drawable(classes[i], NARROW)}\n{_presence(e, i)}", fontsize=7)
            column[2].set_xlabel(f"p = {e.presence[i]:.2f}", fontsize=SMALL)
        for ax, name in zip(axes[:, 1], ("attention", "probability", "mask"), strict=True):
            ax.set_ylabel(name, fontsize=SMALL)
        figure.suptitle(title)
    return figure


def grid(rows: Sequence[tuple[str | None, Mapping[str, Any]]], classes: Sequence[str], title: str) -> Figure:
    """Draw rows of pictures with the same named columns, above a legend of the classes.

    Args:
        rows: A caption or None, and the pictures by column. A picture is an image (h, w, 3), a label map (h, w) uint8,
            a pair of an image and an attention map (h, w), or one of these in a `Captioned`. Each row starts with
            an image.
        classes: Class names.
        title: Title of the figure.
    """
    columns = list(rows[0][1])
    has_captions = any(isinstance(picture, Captioned) for picture in rows[0][1].values())
    with rc_context(STYLE):
        images = [_bare(pictures[columns[0]]) for _, pictures in rows]
        figure, axes = _subplots(images, len(columns), text_above=0.12 if has_captions else 0, text_beside=0.15)
        for (caption, pictures), row in zip(rows, axes, strict=True):
            for name, ax in zip(columns, row, strict=True):
                picture = pictures[name]
                if isinstance(picture, Captioned):
                    ax.set_xlabel(picture.caption, fontsize=SMALL, labelpad=1.5)
                picture = _bare(picture)
                if isinstance(picture, tuple):
                    _show_attention(ax, *picture)
                else:
                    _show(ax, picture)
            if caption:
                row[0].set_ylabel(caption, fontsize=7)
        for name, ax in zip(columns, axes[0], strict=True):
            ax.set_title(name, fontsize=7)
        figure.suptitle(title)
        handles = [Patch(color=color(i), label=drawable(name)) for i, name in enumerate(classes)]
        if any(_has_ignored(_bare(picture)) for _, pictures in rows for picture in pictures.values()):
            handles.append(Patch(facecolor="white", edgecolor="gray", hatch="////", label="ignored"))
        add_legend(figure, handles, fontsize=7, handlelength=1.4, handletextpad=0.5, columnspacing=1.2)
    return figure


def _bare(picture: Any) -> Any:
    """Return a picture without its caption."""
    return picture.picture if isinstance(picture, Captioned) else picture


def _has_ignored(picture: Any) -> bool:
    """Return whether a picture is a label map with ignored pixels."""
    return isinstance(picture, np.ndarray) and picture.ndim == 2 and bool((picture == IGNORE).any())


def _presence(e: Example, label: int) -> str:
    return "present" if e.is_present(label) else "absent"


def _show_attention(ax: Axes, image: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
    """Show an attention map over a gray image, with colors from its smallest to its largest weight."""
    _show(ax, np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1) * 0.6 + 0.4)
    ax.imshow(weights, cmap="inferno", alpha=0.75, vmin=float(weights.min()), vmax=float(weights.max()) + 1e-12)


def _subplots(
    images: Sequence[NDArray[Any]], num_columns: int, text_above: float = 0, text_beside: float = 0
) -> tuple[Figure, NDArray[Any]]:
    """Create a figure with a row of equal plots for each image.

    Args:
        images: (h, w, 3) each; a row has the aspect ratio of its image.
        num_columns: Number of plots in a row.
        text_above: Height in inches of the text above each row.
        text_beside: Width in inches of the text beside the rows.
    """
    side = min(max((PAGE - text_beside) / num_columns, SIDE[0]), SIDE[1])
    heights = [side * image.shape[0] / image.shape[1] + text_above for image in images]
    figure = Figure(figsize=(side * num_columns + text_beside, sum(heights) + 0.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[union-attr,call-arg]
    return figure, figure.subplots(len(images), num_columns, squeeze=False, height_ratios=heights)


def _show(ax: Axes, picture: NDArray[Any]) -> None:
    """Show an image, or a label map in the colors of the classes: background light gray, ignored pixels hatched."""
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if picture.ndim == 3:
        ax.imshow(picture)
        return
    shown = np.ones((*picture.shape, 3))
    for value in np.unique(picture[picture != IGNORE]):
        shown[picture == value] = colors.to_rgb(color_of_label(int(value)))
    ax.imshow(shown, interpolation="nearest")
    is_ignored = picture == IGNORE
    if is_ignored.any():
        ax.contourf(is_ignored.astype(float), levels=[0.5, 1.5], colors="none", hatches=["/////"])
