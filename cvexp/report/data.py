"""The contents of a data set, as numbers to record and as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from cvexp.config import DatasetConfig
from cvexp.console import console, print_line
from cvexp.data.index import Index, Splits
from cvexp.data.problems import grouped
from cvexp.data.split import null_training_key
from cvexp.report.style import shorten

MAX_PROBLEMS = 20  # in the terminal


def describe(index: Index) -> dict[str, Any]:
    """Count images of a split, images, instances, crops and pixels of each class, and pixels of each value in masks.

    The pixels of a class are those of its instances' masks; pixels in two masks count twice. Crowd regions are counted
    separately, and not as instances. All problems are listed, too.
    """
    catalog = index.catalog
    sizes = catalog.size[index.images]
    is_used = np.zeros(len(catalog.files), dtype=np.bool_)
    is_used[index.images] = True
    labels = index.object_labels()
    crops = index.counts()
    classes = {}
    for number, name in enumerate(index.classes):
        instances = np.flatnonzero(labels == number)
        classes[name] = {
            "images": len(np.unique(catalog.image[instances])),
            "instances": len(instances),
            "crops": crops[name],
            "pixels": int(catalog.area[instances].sum()),
        }
    is_class = np.isin(catalog.classes, index.classes)
    crowds = is_used[catalog.image] & catalog.crowd
    return {
        "root": index.place,
        "fingerprint": index.fingerprint(),
        "images": len(index.images),
        "images_in_all": len(catalog.files),
        "width": _range(sizes[:, 0]),
        "height": _range(sizes[:, 1]),
        "pixels": int(sizes.astype(np.int64).prod(axis=1).sum()),
        "crops": len(index),
        "crowds": int(is_class[catalog.label[crowds]].sum()) if len(index.classes) else 0,
        "classes": classes,
        "mask_values": _mask_values(index),
        "problems": [[problem.where, str(problem).removeprefix(f"{problem.where}: ")] for problem in index.problems],
    }


def _mask_values(index: Index) -> list[dict[str, Any]]:
    """Return each value in mask files, what it stands for, and its number of pixels; nothing without mask files."""
    catalog, table = index.catalog, index.catalog.mask_table
    if not len(catalog.mask_files.content):
        return []
    is_used = np.isin(catalog.image, index.images)
    pixels = [int(catalog.area[is_used & (catalog.label == i)].sum()) for i in range(len(catalog.classes))]
    num_ignored = int(catalog.ignored[index.images].sum())
    num_others = int(catalog.size[index.images].astype(np.int64).prod(axis=1).sum()) - sum(pixels) - num_ignored
    rows = list(zip(map(table.name, table.classes), catalog.classes, pixels, strict=True))
    for value, key, meaning, count in (
        (table.background, "background", "background", num_others),
        (table.ignored, "ignore", "ignored", num_ignored),
    ):
        names = ([] if value is None else [table.name(value)]) + (["others"] if table.others == key else [])
        if names:
            rows.append((", ".join(names), meaning, count))
    return [{"value": value, "meaning": meaning, "pixels": count} for value, meaning, count in rows]


def _range(values: NDArray[np.integer]) -> dict[str, float]:
    """Return the smallest, median and largest value; nothing if there are no values."""
    if not len(values):
        return {}
    return {"least": int(values.min()), "median": float(np.median(values)), "most": int(values.max())}


def _print_mask_values(summaries: Mapping[str, dict[str, Any]]) -> None:
    """Print a table of the values in masks, with their shares of the pixels of each split, if there are masks."""
    with_masks = {split: summary for split, summary in summaries.items() if summary["mask_values"]}
    if not with_masks:
        return
    table = Table(title="values in the masks, and their shares of the pixels", title_justify="left")
    for column in ("value", "stands for"):
        table.add_column(column)
    for split in with_masks:
        table.add_column(split, justify="right")
    for rows in zip(*(summary["mask_values"] for summary in with_masks.values()), strict=True):
        if not any(row["pixels"] for row in rows):
            continue
        totals = [max(summary["pixels"], 1) for summary in with_masks.values()]
        shares = [f"{row['pixels'] / total:.2%}" for row, total in zip(rows, totals, strict=True)]
        table.add_row(rows[0]["value"], shorten(rows[0]["meaning"]), *shares)
    console.print(table)


def print_data(config: DatasetConfig, splits: Splits) -> None:
    """Print a table of the splits, a line about each, and the first problems."""
    null_key = null_training_key(config)
    summaries = {index.split: describe(index) for index in list(splits)[1 if null_key else 0 :]}
    table = Table(title=f"{config.name}: {splits.val.place}", title_justify="left")
    for column in ("split", "class", "images", "instances", "crops", "pixels"):
        table.add_column(column, justify="left" if column in ("split", "class") else "right")
    for split, summary in summaries.items():
        for name, of_class in summary["classes"].items():
            counts = [str(of_class[key]) for key in ("images", "instances", "crops")]
            table.add_row(split, shorten(name), *counts, f"{of_class['pixels'] / max(summary['pixels'], 1):.2%}")
        table.add_row(split, "all", str(summary["images"]), "", str(summary["crops"]), "", end_section=True)
    console.print(table)
    _print_mask_values(summaries)
    if null_key:
        print_line(f"train: empty, because {null_key} is null")
    for split, summary in summaries.items():
        parts = [f"{split}: {summary['images']} of {summary['images_in_all']} images"]
        if summary["width"]:
            width, height = (f"{summary[side]['least']} to {summary[side]['most']}" for side in ("width", "height"))
            parts.append(f"{width} px wide, {height} px high")
        if summary["crowds"]:
            parts.append(f"{summary['crowds']} crowd regions are ignored")
        instances = sum(of_class["instances"] for of_class in summary["classes"].values())
        if instances > summary["crops"]:
            size = config.min_crop_size
            parts.append(
                f"{instances - summary['crops']} of {instances} objects are less than {size} px wide or high, so they "
                "are not cropped for pretraining (dataset.min_crop_size)"
            )
        print_line("; ".join(parts))
    problems = grouped([problem for index in splits for problem in index.problems])
    for problem in problems[:MAX_PROBLEMS]:
        print_line(f"problem: {problem}", style="yellow")
    if len(problems) > MAX_PROBLEMS:
        print_line(f"... and {len(problems) - MAX_PROBLEMS} more, in data/report.json", style="yellow")
