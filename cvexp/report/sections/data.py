"""The section on the data."""

from __future__ import annotations

from collections.abc import Sequence

from cvexp.report.document import Paragraph, Table
from cvexp.report.sections.material import Blocks, Material, count
from cvexp.report.style import shorten
from cvexp.tracking.finished import FinishedRun, RecordedData

MAX_CLASSES = 8  # named in the table


def data_section(material: Material) -> Blocks:
    """Show which images and objects the runs used."""
    runs = [*material.pretrainings, *material.segmentations]
    if not runs:
        return material.missing("There is no finished run.", "python -m cvexp task=dino")
    unrecorded = [run.id[:8] for run in runs if not run.data]
    blocks: Blocks = []
    if rows := _rows(runs):
        columns = ["data set", "split", "used for", "images", "objects", "objects per class", "fingerprint"]
        blocks.append(Table(columns, rows, _caption(material.segmentations), wide=True))
    if unrecorded:
        blocks.append(Paragraph(f"{count(len(unrecorded), 'run')} did not record the data: {', '.join(unrecorded)}."))
    return blocks


def _rows(runs: Sequence[FinishedRun]) -> list[list[str]]:
    uses: dict[tuple[str, str, str], list[str]] = {}
    recorded: dict[str, RecordedData] = {}
    for run in runs:
        for split, of_split in run.data.items():
            if run.role == "pretraining" and split == "test":
                continue  # it leaves these images alone
            recorded[of_split.fingerprint] = of_split
            roles = uses.setdefault((run.config.dataset.name, split, of_split.fingerprint), [])
            if run.role not in roles:
                roles.append(run.role)
    rows = []
    for (source, split, fingerprint), roles in uses.items():
        of_split = recorded[fingerprint]
        named = [f"{shorten(name)} {number}" for name, number in of_split.classes.items()]
        more = f" and {len(named) - MAX_CLASSES} more" if len(named) > MAX_CLASSES else ""
        classes = ", ".join(named[:MAX_CLASSES]) + more or "no labels"
        numbers = [f"{of_split.num_images}", f"{of_split.num_objects}"]
        rows.append([source, split, " and ".join(roles), *numbers, classes, fingerprint[:8]])
    return rows


def _caption(segmentations: Sequence[FinishedRun]) -> str:
    caption = "Data of the runs. The fingerprint is a hash of the files, boxes and labels."
    if sizes := sorted({run.config.dataset.image_size for run in segmentations}):
        caption += f" Segmentation uses whole images, with a longer side of {' or '.join(map(str, sizes))} px."
    fractions = sorted({run.config.dataset.fraction for run in segmentations})
    if fractions and fractions[0] < 1:
        shares = " or ".join(f"{fraction:.3g}" for fraction in fractions)
        caption += f" It trains on a share of {shares} of the training images (dataset.fraction)."
    return caption
