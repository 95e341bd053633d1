"""What is in a data set, as numbers to keep and as a table to read."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from cvexp.config import DatasetConfig
from cvexp.data.catalog import grouped
from cvexp.data.index import BACKGROUND, IGNORE, Index, Splits
from cvexp.data.split import null_training_key
from cvexp.report.console import console, print_line
from cvexp.report.style import shorten

MOST_SHOWN = 20


def describe(index: Index) -> dict[str, Any]:
    """Images, sizes, and of each class images, instances, crops and pixels; and every problem.

    Pixels are those of the instances' masks: where two overlap they count twice. Crowds count nowhere.
    """
    catalog = index.catalog
    sizes = catalog.size[index.images]
    is_chosen = np.zeros(len(catalog.files), dtype=np.bool_)
    is_chosen[index.images] = True
    counted = is_chosen[catalog.image] & ~catalog.crowd
    crops = index.counts()
    classes = {}
    for number, name in enumerate(index.classes):
        own = np.flatnonzero(counted & (index.value_of[catalog.label] == number + 1))
        classes[name] = {
            "images": len(np.unique(catalog.image[own])),
            "instances": len(own),
            "crops": crops[name],
            "pixels": int(catalog.area[own].sum()),
        }
    of_classes = ~np.isin(index.value_of, (BACKGROUND, IGNORE))
    crowds = is_chosen[catalog.image] & catalog.crowd
    return {
        "root": str(index.root),
        "fingerprint": index.fingerprint(),
        "images": len(index.images),
        "images_in_all": len(catalog.files),
        "width": _range(sizes[:, 0]),
        "height": _range(sizes[:, 1]),
        "pixels": int(sizes.astype(np.int64).prod(axis=1).sum()),
        "crops": len(index),
        "crowds": int(of_classes[catalog.label[crowds]].sum()) if len(index.classes) else 0,
        "classes": classes,
        "problems": [[problem.where, str(problem).removeprefix(f"{problem.where}: ")] for problem in index.problems],
    }


def _range(values: Any) -> dict[str, float]:
    if not len(values):
        return {}
    return {"least": int(values.min()), "median": float(np.median(values)), "most": int(values.max())}


def print_data(config: DatasetConfig, splits: Splits) -> None:
    """The table of both splits, and the first problems."""
    key = null_training_key(config)
    filled = [splits.val] if key else list(splits)
    table = Table(title=f"{config.name}: {splits.val.root}", title_justify="left")
    for column in ("split", "class", "images", "instances", "crops", "pixels"):
        table.add_column(column, justify="left" if column in ("split", "class") else "right")
    for index in filled:
        said = describe(index)
        total = max(said["pixels"], 1)
        for row in said["classes"]:
            own = said["classes"][row]
            numbers = [f"{own[key]}" for key in ("images", "instances", "crops")]
            table.add_row(index.split, shorten(row), *numbers, f"{own['pixels'] / total:.2%}")
        table.add_row(index.split, "all", str(said["images"]), "", str(said["crops"]), "", end_section=True)
    console.print(table)
    if key:
        print_line(f"train: empty, as {key} is null")
    for index in filled:
        said = describe(index)
        parts = [f"{index.split}: {said['images']} of {said['images_in_all']} images"]
        if said["width"]:
            sides = [f"{said[side]['least']} to {said[side]['most']}" for side in ("width", "height")]
            parts.append(f"{sides[0]} px wide, {sides[1]} px high")
        if said["crowds"]:
            parts.append(f"{said['crowds']} crowd regions are ignored")
        print_line("; ".join(parts))
    problems = grouped([problem for index in splits for problem in index.problems])
    for problem in problems[:MOST_SHOWN]:
        print_line(f"problem: {problem}", style="yellow")
    if len(problems) > MOST_SHOWN:
        print_line(f"... and {len(problems) - MOST_SHOWN} more, in data/report.json", style="yellow")
