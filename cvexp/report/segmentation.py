"""Pictures of segmentations: image, label, prediction, and where the attention lay."""

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

from cvexp.data.augment.labeled import fit
from cvexp.data.index import BACKGROUND, IGNORE, Index
from cvexp.report.style import NARROW, PAGE, SMALL, STYLE, add_legend, color, drawable

if TYPE_CHECKING:
    from cvexp.models.segmenters import Prediction

SIDE = (0.55, 0.78)  # inches of a picture: the least and the largest
ASKED = 8  # classes in one figure


@dataclass(frozen=True)
class Example:
    """One image and what was said of it, without what lies beside the image.

    Attributes:
        image: (h, w, 3) from 0 to 1.
        labels: (h, w), 0 background, then the classes, 255 ignored.
        predicted: (h, w).
        presence: (c,), how probable it is that each class is there.
        probability: (c, h, w), the same of each pixel.
        attention: (c, heads, h', w') of what the model saw, which may be more than the image; or None.
        seen: The height and width of that in pixels.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    presence: NDArray[np.float32]
    probability: NDArray[np.float16]
    attention: Tensor | None
    seen: tuple[int, int]

    def attention_of(self, label: int, head: int | None = None) -> NDArray[np.float32]:
        """Where the attention of a class lies, (h, w): of one head, or the mean over all."""
        assert self.attention is not None
        small = self.attention[label].mean(dim=0) if head is None else self.attention[label, head]
        large = interpolate(small[None, None], size=self.seen, mode="bilinear", align_corners=False)[0, 0].numpy()
        height, width = self.image.shape[:2]
        return large[:height, :width]

    @property
    def main_class(self) -> int:
        """The class with most labeled pixels, counted from 0."""
        values = self.labels[(self.labels != BACKGROUND) & (self.labels != IGNORE)]
        return int(np.bincount(values).argmax()) - 1 if len(values) else 0


def example(index: Index, position: int, image: Tensor, labels: Tensor, prediction: Prediction, number: int) -> Example:
    """The picture of a validation image.

    Args:
        index, position: Where it comes from.
        image, labels: As the model got them, but not normalized: (3, h, w) uint8 and (h, w).
        prediction: Of its batch.
        number: Its place there.
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
        seen=(labels.shape[0], labels.shape[1]),
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
        figure, axes = _axes([e.image for e in examples], 1 + len(classes), above=0.4)
        for row, e in zip(axes, examples, strict=True):
            _show(row[0], e.image)
            for i, name in enumerate(classes):
                show_attention(row[1 + i], e.image, e.attention_of(i))
                there = bool((e.labels == i + 1).any())
                title = f"{drawable(name, NARROW)}\n{'there' if there else 'not there'}\nsaid {e.presence[i]:.2f}"
                row[1 + i].set_title(title, fontsize=SMALL, color="black" if there else "gray")
        figure.suptitle(f"attention, mean of the heads, {when}; brighter is more")
    return figure


def heads(captioned: Sequence[tuple[str, Example]], classes: Sequence[str], title: str) -> Figure:
    """Image, label and prediction, and where each head looks for two classes: the largest there, and one that is not.

    Args:
        captioned: Examples, each with a word for its row.
        classes: Names.
        title: Of all.
    """
    assert captioned[0][1].attention is not None
    number = captioned[0][1].attention.shape[1]
    rows: list[tuple[str | None, dict[str, Any]]] = []
    for caption, e in captioned:
        there = np.unique(e.labels[(e.labels != BACKGROUND) & (e.labels != IGNORE)])
        absent = [i for i in range(len(classes)) if not (e.labels == i + 1).any()]
        row: dict[str, Any] = {"image": e.image, "label": e.labels, "prediction": e.predicted}
        for place, label in (
            ("there", e.main_class if len(there) else None),
            ("not there", absent[0] if absent else None),
        ):
            for head in range(number):
                column = f"{place}\nhead {head + 1}" if number > 1 else place
                if label is None:
                    row[column] = Captioned(e.image, "all are there" if len(there) else "none is there")
                else:
                    row[column] = Captioned((e.image, e.attention_of(label, head)), drawable(classes[label], NARROW))
        rows.append((caption, row))
    return grid(rows, classes, title)


def one_after_another(e: Example, classes: Sequence[str], title: str) -> Figure:
    """One image, of which every class is asked: where the attention lies, and the mask that is answered.

    Of many classes those that are there are shown, and as many others as there is room for.
    """
    there = [bool((e.labels == i + 1).any()) for i in range(len(classes))]
    shown = sorted(sorted(range(len(classes)), key=lambda i: not there[i])[:ASKED])
    with rc_context(STYLE):
        figure, axes = _axes([e.image] * 3, 1 + len(shown), beside=0.3)
        whole: dict[str, NDArray[Any]] = {"image": e.image, "label": e.labels, "prediction": e.predicted}
        for at, (name, picture) in zip(axes[:, 0], whole.items(), strict=True):
            _show(at, picture)
            at.set_ylabel(name, fontsize=SMALL)
        for column, i in zip(axes.T[1:], shown, strict=True):
            show_attention(column[0], e.image, e.attention_of(i))
            _show(column[1], np.repeat(e.probability[i][..., None], 3, axis=-1))
            _show(column[2], np.where(e.probability[i] > 0.5, i + 1, BACKGROUND).astype(np.uint8))
            column[0].set_title(f"{drawable(classes[i], NARROW)}?\n{'there' if there[i] else 'not there'}", fontsize=7)
            column[2].set_xlabel(f"answer: {e.presence[i]:.2f}", fontsize=SMALL)
        for at, word in zip(axes[:, 1], ("attention", "probability", "mask"), strict=True):
            at.set_ylabel(word, fontsize=SMALL)
        figure.suptitle(title)
    return figure


def grid(rows: Sequence[tuple[str | None, Mapping[str, Any]]], classes: Sequence[str], title: str) -> Figure:
    """Rows of pictures, each with the same named columns, and the classes' colors below.

    Args:
        rows: A caption or None, and the pictures: an image (h, w, 3), a label map (h, w) uint8, a pair of an image and
            an attention map (h, w), or one of these in a `Captioned`; the first is an image.
        classes: Their names.
        title: Of all.
    """
    columns = list(rows[0][1])
    captions = any(isinstance(picture, Captioned) for picture in rows[0][1].values())
    with rc_context(STYLE):
        figure, axes = _axes([shown[columns[0]] for _, shown in rows], len(columns), 0.12 if captions else 0, 0.15)
        for (caption, shown), row in zip(rows, axes, strict=True):
            for name, at in zip(columns, row, strict=True):
                picture = shown[name]
                if isinstance(picture, Captioned):
                    at.set_xlabel(picture.caption, fontsize=SMALL, labelpad=1.5)
                    picture = picture.picture
                if isinstance(picture, tuple):
                    show_attention(at, *picture)
                else:
                    _show(at, picture)
            if caption:
                row[0].set_ylabel(caption, fontsize=7)
        for name, at in zip(columns, axes[0], strict=True):
            at.set_title(name, fontsize=7)
        figure.suptitle(title)
        handles = [Patch(color=color(i), label=drawable(name)) for i, name in enumerate(classes)]
        handles.append(Patch(facecolor="white", edgecolor="gray", hatch="////", label="ignored"))
        add_legend(figure, handles, fontsize=7, handlelength=1.4, handletextpad=0.5, columnspacing=1.2)
    return figure


def show_attention(axes: Axes, image: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
    """An attention map over a gray image, from the least to the largest of its weights."""
    _show(axes, np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1) * 0.6 + 0.4)
    axes.imshow(weights, cmap="inferno", alpha=0.75, vmin=float(weights.min()), vmax=float(weights.max()) + 1e-12)


def _axes(
    images: Sequence[NDArray[Any]], columns: int, above: float = 0, beside: float = 0
) -> tuple[Figure, NDArray[Any]]:
    """A figure with a row for each of these images, (h, w, 3), and inches for words above each and beside all."""
    side = min(max((PAGE - beside) / columns, SIDE[0]), SIDE[1])
    heights = [side * image.shape[0] / image.shape[1] + above for image in images]
    figure = Figure(figsize=(side * columns + beside, sum(heights) + 0.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[union-attr,call-arg]
    return figure, figure.subplots(len(images), columns, squeeze=False, height_ratios=heights)


def _show(axes: Axes, picture: NDArray[Any]) -> None:
    """An image, or a label map in the classes' colors: the background light gray, ignored pixels hatched."""
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
