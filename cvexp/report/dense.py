"""Pictures of dense features: main components as colors, and the attention of a vision transformer by head.

Shapes: m images, h x w positions of a feature map, c channels, k main components, n heads, s pixels per side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cvexp.metrics.components import Components, fit_scale, main_components
from cvexp.report.arrays import read_arrays
from cvexp.report.style import DPI, state_of
from cvexp.report.tiles import Tile, draw_tiles
from cvexp.tracking.sink import Sink
from cvexp.tracking.store import Store

MAX_IMAGES = 24  # in one figure
NUM_KEPT = 32  # main components that are recorded
THUMBNAIL = 128  # pixels per side of a recorded image
MAX_HEADS = 12  # in one figure
MAX_BYTES = 100e6  # of the unpacked arrays of a record


class DenseRecord(NamedTuple):
    """The feature maps of m images at an epoch, in the coordinates of their main components.

    Attributes:
        images: (m, s, s, 3) uint8.
        scores: (m, h, w, k) float16. The maps are centered and divided by the standard deviation of all entries. The
            first three components are rotated to match those of the previous epoch.
        components: (k, c) float16, orthonormal.
        attention: (m, n, h, w) float16; (m, 0, h, w) without a vision transformer.
        of_class_token: Whether the attention is that of the class token; () bool.
    """

    images: NDArray[np.uint8]
    scores: NDArray[np.float16]
    components: NDArray[np.float16]
    attention: NDArray[np.float16]
    of_class_token: NDArray[np.bool_]

    @property
    def reference(self) -> NDArray[np.float32]:
        """The scores (m * h * w, 3) that are shown as colors."""
        return self.scores[..., :3].reshape(-1, 3).astype(np.float32)

    def fits(self, other: DenseRecord) -> bool:
        """Return whether the maps have the same shape as others, with which they are drawn."""
        return self.scores.shape[:3] == other.scores.shape[:3] and self.components.shape == other.components.shape

    def maps(self) -> NDArray[np.float32]:
        """Return the maps (m, h, w, c), as far as the recorded components describe them."""
        return self.scores.astype(np.float32) @ self.components.astype(np.float32)


def log_record(sink: Sink, record: DenseRecord, epoch: int) -> None:
    """Save the artifact `dense/epoch-NNNN.npz`; epoch 0 is the untrained backbone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"epoch-{epoch:04d}.npz"
        arrays: dict[str, Any] = record._asdict()
        np.savez_compressed(path, **arrays)
        sink.log_file(path, "dense")


def read_record(store: Store, run_id: str, epoch: int) -> DenseRecord:
    """Read what a run recorded at an epoch.

    Raises:
        UserError: if there is nothing, or it is damaged.
    """
    return store.read(run_id, f"dense/epoch-{epoch:04d}.npz", _read)


def _read(path: Path) -> DenseRecord:
    content = read_arrays(path, MAX_BYTES)
    record = DenseRecord(**{name: content[name] for name in DenseRecord._fields})
    types = [np.uint8, np.float16, np.float16, np.float16, np.bool_]
    if [array.dtype for array in record] != types or [array.ndim for array in record] != [4, 4, 2, 4, 0]:
        raise ValueError("its arrays have unexpected types")
    (num_images, height, width, k), (num_pictures, *sides, num_colors) = record.scores.shape, record.images.shape
    if (
        (num_pictures, num_colors) != (num_images, 3)
        or record.attention.shape[:1] + record.attention.shape[2:] != (num_images, height, width)
        or len(record.components) != k
        or k < 3
        or 0 in (num_images, height, width, *sides)
    ):
        raise ValueError("its arrays do not fit together")
    if not all(np.isfinite(array).all() for array in record):
        raise ValueError("its values are not finite")
    return record


def standardize(maps_mhwc: NDArray[np.float32]) -> NDArray[np.float32]:
    """Center feature maps, and divide them by the standard deviation of all entries.

    The mean and the size of the features may change much in training, which would hide everything else.
    """
    centered = maps_mhwc - maps_mhwc.mean((0, 1, 2))
    standardized: NDArray[np.float32] = centered / max(float(centered.std()), 1e-12)
    return standardized


def draw_components(
    pictures: Sequence[NDArray[np.uint8]],
    colors: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    title: str,
    dpi: int = DPI,
) -> Figure:
    """Draw each image, its main components as colors, and both blended.

    Args:
        pictures: Images, (height, width, 3) each.
        colors: (h, w, 3) each.
        captions: Texts below the images.
        title: The title of the figure.
        dpi: Resolution of the figure.
    """
    tiles = []
    for picture, color, caption in zip(pictures, colors, captions, strict=True):
        smooth = np.asarray(Image.fromarray(color).resize(picture.shape[1::-1], Image.Resampling.BILINEAR))
        gray = picture.mean(-1, keepdims=True)
        blended = np.rint(0.35 * gray + 0.65 * smooth).astype(np.uint8)
        tiles.append([Tile(picture, caption), Tile(color, is_smooth=False), Tile(blended)])
    return draw_tiles(*_side_by_side(tiles, ["image", "components", "blended"]), title, dpi)


def _side_by_side(rows: list[list[Tile]], columns: list[str]) -> tuple[list[list[Tile]], list[str]]:
    """Put two rows side by side if the columns are few."""
    groups = 2 if len(rows) > 1 and len(columns) <= 3 else 1
    joined = [[tile for row in rows[i : i + groups] for tile in row] for i in range(0, len(rows), groups)]
    return joined, columns * groups


def draw_attention(
    pictures: Sequence[NDArray[np.uint8]],
    attention: Sequence[NDArray[Any]],
    captions: Sequence[str],
    of_class_token: bool,
    state: str,
    dpi: int = DPI,
) -> Figure:
    """Draw each image and the attention of each head, from 0 to the largest weight of that head in that image.

    Args:
        pictures: Images, (height, width, 3) each.
        attention: (n, h, w) each.
        captions: Texts below the images.
        of_class_token: Whether the query is the class token, and not the mean over all positions.
        state: The state of training, for the title.
        dpi: Resolution of the figure.
    """
    colormap = matplotlib.colormaps["inferno"]
    rows = []
    for picture, weights, caption in zip(pictures, attention, captions, strict=True):
        row = [Tile(picture, caption)]
        for head in weights[:MAX_HEADS].astype(np.float32):
            shares = np.rint(255 * head / max(float(head.max()), 1e-12)).astype(np.uint8)
            large = Image.fromarray(shares).resize(picture.shape[1::-1], Image.Resampling.BILINEAR)
            row.append(Tile((colormap(np.asarray(large))[..., :3] * 255).astype(np.uint8)))
        rows.append(row)
    num_heads = len(attention[0])
    shown = f"; first {MAX_HEADS} of {num_heads} heads" if num_heads > MAX_HEADS else ""
    query = "the class token" if of_class_token else "all positions (mean)"
    columns = ["image", *(f"head {head + 1}" for head in range(min(num_heads, MAX_HEADS)))]
    title = f"attention of {query}, {state}\nlast block{shown}; dark: 0, bright: largest weight of a map"
    return draw_tiles(*_side_by_side(rows, columns), title, dpi)


def draw_epochs(records: Mapping[int, DenseRecord]) -> Figure:
    """Draw the main components of each image over the epochs, fitted once to all of these epochs together."""
    maps = [record.maps() for record in records.values()]
    everything = np.concatenate([features.reshape(-1, features.shape[-1]) for features in maps])
    components: Components = main_components(everything, 3)
    scores = [components.scores(features) for features in maps]
    scale = fit_scale(np.concatenate([score.reshape(-1, 3) for score in scores]))
    colors = [scale.colors(score) for score in scores]
    images = next(iter(records.values())).images
    rows = [
        [Tile(image), *(Tile(of_epoch[number], is_smooth=False) for of_epoch in colors)]
        for number, image in enumerate(images)
    ]
    return draw_tiles(rows, ["image", *map(state_of, records)], "main components of the feature maps")
