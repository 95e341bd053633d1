"""The section on the comparison of methods."""

from __future__ import annotations

from cvexp.metrics.bootstrap import MIN_IMAGES, Interval
from cvexp.metrics.comparison import Comparison
from cvexp.report import comparison as compared
from cvexp.report.document import Paragraph, Picture, Table, read_png
from cvexp.report.sections.material import Blocks, Material
from cvexp.report.style import shorten
from cvexp.tracking.finished import FinishedRun


def comparison_section(material: Material) -> Blocks:
    """Show the scores, their differences and some images of the comparison."""
    if material.comparison is None or material.comparison_run is None:
        return material.missing(
            "No methods have been compared. A comparison needs at least two segmentation runs.",
            "python -m cvexp task=compare",
        )
    run = material.comparison_run
    optimism = [Paragraph(sentence) for sentence in compared.optimism(material.comparison)]
    blocks: Blocks = [*optimism, _table(material.comparison, run), _differences(material.comparison, run)]
    return [*blocks, *_examples(material.comparison, run)]


def _table(comparison: Comparison, run: FinishedRun) -> Table:
    names, rows = compared.rows(comparison)
    (_, *methods), (_, *weights), *scores = [[name, *cells] for name, *cells in zip(names, *rows, strict=True)]
    columns = [b if a == "constant" else f"{a} from {b}" for a, b in zip(methods, weights, strict=True)]
    caption = (
        f"Scores on {len(comparison.images)} {comparison.split_name} images, computed with the same code for all runs "
        f"(run {run.id[:8]}): mean ± standard deviation over the seeds. Rows of classes show the IoU over the pixels "
        "of all images, and mIoU is the mean over the classes. Columns name the method and the initial weights, "
        "or the label that a constant predicts for every pixel. Times are medians, with the first and third quartiles."
    )
    return Table(["", *columns], scores, caption, wide=len(columns) > 3)


def _differences(comparison: Comparison, run: FinishedRun) -> Table | Paragraph:
    if not comparison.differences:
        return Paragraph(compared.NO_PAIRS)
    rows = []
    for difference in comparison.differences:
        interval = difference.interval
        bounds = f"{interval.low:+.3f} to {interval.high:+.3f}"
        value, verdict = f"{interval.difference:+.3f}", _verdict(comparison, interval)
        rows.append([shorten(difference.name, 60), f"{difference.num_pairs}", value, bounds, verdict])
    caption = (
        f"Differences in mIoU, averaged over pairs of runs with equal seeds (run {run.id[:8]}). The intervals, "
        "from a paired bootstrap over the images, show how much a difference depends on the images. Only the standard "
        "deviations above show how much it depends on the seeds."
    )
    columns = ["difference", "pairs", "mIoU", f"{comparison.confidence:.0%} interval", "excludes zero"]
    return Table(columns, rows, caption)


def _verdict(comparison: Comparison, interval: Interval) -> str:
    if len(comparison.images) < MIN_IMAGES:
        return "too few images"
    return "yes" if interval.is_clear else "no"


def _examples(comparison: Comparison, run: FinishedRun) -> Blocks:
    picture = run.read("comparison/examples.png", read_png)
    if picture is None:
        return []
    which = f"Best, median and worst {comparison.split_name} image"
    alt = f"{which}, each with its label, the predictions and an attention map"
    caption = f"{which} by mIoU, averaged over the runs shown (run {run.id[:8]})."
    return [Picture(picture, alt, caption, wide=True)]
