"""Figures of segmentations: images, labels, predictions, and attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from cvexp.colors import color
from cvexp.data.augment.labeled import fit
from cvexp.data.index import BACKGROUND, IGNORE, Index
from cvexp.report.overlays import heat, label_colors
from cvexp.report.style import DPI, drawable
from cvexp.report.tiles import Tile, draw_tiles

if TYPE_CHECKING:
    from cvexp.models.segmenters import Prediction

SIDES = (0.55, 0.78)  # inches, the smallest and largest side of a picture
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
    """A picture of `grid` with a text below it, which is gray if it is not important."""

    picture: Any
    caption: str
    is_important: bool = True


def predictions(examples: Sequence[Example], classes: Sequence[str], state: str, dpi: int = DPI) -> Figure:
    """Draw image, label and prediction, with a row for each example.

    Args:
        examples: The examples.
        classes: Class names.
        state: The state of training, for the title.
        dpi: Resolution of the figure.
    """
    rows = [(None, {"image": e.image, "label": e.labels, "prediction": e.predicted}) for e in examples]
    return grid(rows, classes, f"validation images, {state}", dpi)


def attention(examples: Sequence[Example], classes: Sequence[str], state: str, dpi: int = DPI) -> Figure:
    """Draw the attention map of each class, averaged over the heads, with a row for each example.

    The text below a map says whether the image contains the class, and the predicted probability p that it does.

    Args:
        examples: The examples.
        classes: Class names.
        state: The state of training, for the title.
        dpi: Resolution of the figure.
    """
    rows = []
    for e in examples:
        maps = [
            Captioned((e.image, e.attention_of(i)), f"{_presence(e, i)}\np = {e.presence[i]:.2f}", e.is_present(i))
            for i in range(len(classes))
        ]
        rows.append([_tile(e.image), *map(_tile, maps)])
    title = f"attention, mean of the heads, {state}; brighter is more"
    return draw_tiles(rows, ["image", *classes], title, dpi, sides=SIDES)


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
                    row[column] = Captioned((e.image, e.attention_of(label, head)), classes[label])
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
    rows = [[Captioned(e.image, "image")], [Captioned(e.labels, "label")], [Captioned(e.predicted, "prediction")]]
    for i in shown:
        mask = np.where(e.probability[i] > 0.5, i + 1, BACKGROUND).astype(np.uint8)
        rows[0].append(Captioned((e.image, e.attention_of(i)), "attention"))
        rows[1].append(Captioned(np.repeat(e.probability[i][..., None], 3, axis=-1), "probability"))
        rows[2].append(Captioned(mask, f"mask\np = {e.presence[i]:.2f}"))
    columns = ["", *(f"{classes[i]}\n{_presence(e, i)}" for i in shown)]
    return draw_tiles([list(map(_tile, row)) for row in rows], columns, title, sides=SIDES)


def grid(
    rows: Sequence[tuple[str | None, Mapping[str, Any]]], classes: Sequence[str], title: str, dpi: int = DPI
) -> Figure:
    """Draw rows of pictures with the same named columns, above a legend of the classes.

    Args:
        rows: A caption or None, and the pictures by column. A picture is an image (h, w, 3) from 0 to 1, a label map
            (h, w) uint8, a pair of an image and an attention map (h, w), or one of these in a `Captioned`.
        classes: Class names.
        title: Title of the figure.
        dpi: Resolution of the figure.
    """
    shown = [picture for _, pictures in rows for picture in pictures.values()]
    legend = [Patch(color=color(i), label=drawable(name)) for i, name in enumerate(classes)]
    if any(_has_ignored(_bare(picture)) for picture in shown):
        legend.append(Patch(facecolor="white", edgecolor="gray", hatch="////", label="ignored"))
    return draw_tiles(
        [list(map(_tile, pictures.values())) for _, pictures in rows],
        list(rows[0][1]),
        title,
        dpi,
        sides=SIDES,
        names=[caption or "" for caption, _ in rows],
        legend=legend,
    )


def _tile(picture: Any) -> Tile:
    """Return a picture of `grid` as a tile."""
    bare = _bare(picture)
    if isinstance(bare, tuple):
        image, weights = bare
        tile = Tile(np.asarray(heat(_pixels(image), weights)))
    elif bare.ndim == 3:
        tile = Tile(_pixels(bare))
    else:
        tile = Tile(label_colors(bare), is_smooth=False)
    if isinstance(picture, Captioned):
        tile = tile._replace(caption=picture.caption, color="black" if picture.is_important else "gray")
    return tile


def _pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _bare(picture: Any) -> Any:
    """Return a picture without its caption."""
    return picture.picture if isinstance(picture, Captioned) else picture


def _has_ignored(picture: Any) -> bool:
    """Return whether a picture is a label map with ignored pixels."""
    return isinstance(picture, np.ndarray) and picture.ndim == 2 and bool((picture == IGNORE).any())


def _presence(e: Example, label: int) -> str:
    return "present" if e.is_present(label) else "absent"
