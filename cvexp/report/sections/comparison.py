"""The section on the comparison of methods."""

from __future__ import annotations

from cvexp.metrics.bootstrap import Interval
from cvexp.metrics.comparison import Comparison
from cvexp.report import comparison as compared
from cvexp.report.document import Paragraph, Picture, Table, read_png
from cvexp.report.sections.material import Blocks, Material, missing
from cvexp.report.style import shorten
from cvexp.tracking.finished import FinishedRun


def comparison_section(material: Material) -> Blocks:
    """Show the table, the differences and some images of the comparison."""
    if material.comparison is None or material.comparison_run is None:
        return missing("The methods have not been compared, which takes two runs.", "python -m cvexp task=compare")
    run = material.comparison_run
    return [_table(material.comparison, run), _differences(material.comparison, run), *_examples(run)]


def _table(comparison: Comparison, run: FinishedRun) -> Table:
    names, rows = compared.rows(comparison)
    method, start, *scores = [[name, *cells] for name, *cells in zip(names, *rows, strict=True)]
    columns = [
        "",
        *(
            f"{a} {b}" if b.startswith("always") else f"{a} from {b}"
            for a, b in zip(method[1:], start[1:], strict=True)
        ),
    ]
    caption = (
        f"{len(comparison.images)} validation images, evaluated with the same code in the run {run.id[:8]}: IoU of "
        "each class and their mean; mean ± standard deviation over the seeds, whose runs are in the table of the "
        "segmenters. Times are medians with the first and third quartile. Always means that one label is predicted for "
        "every pixel."
    )
    return Table(columns, scores, caption, wide=len(columns) > 4)


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
        f"Differences of mIoU (run {run.id[:8]}). The intervals are from a paired bootstrap over the images: they show "
        "how much the result depends on the images. How much it depends on the seeds is shown by the standard "
        "deviations alone."
    )
    columns = ["difference", "pairs", "mIoU", f"{comparison.confidence:.0%} interval", "zero is"]
    return Table(columns, rows, caption)


def _verdict(comparison: Comparison, interval: Interval) -> str:
    if len(comparison.images) < compared.MIN_IMAGES:
        return "not judged: too few images"
    return "outside" if interval.is_clear else "within"


def _examples(run: FinishedRun) -> Blocks:
    picture = run.read("comparison/examples.png", read_png)
    if picture is None:
        return []
    alt = "The best, median and worst validation image: image, label, predictions, attention"
    caption = f"Best, median and worst image, by the mean mIoU of the runs shown (run {run.id[:8]})."
    return [Picture(picture, alt, caption, wide=True)]
