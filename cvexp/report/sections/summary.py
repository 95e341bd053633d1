"""The summary at the top of the report."""

from __future__ import annotations

from cvexp.metrics.comparison import RANDOM, Comparison, Difference
from cvexp.report import comparison as compared
from cvexp.report.sections.material import Material, count, worse_features
from cvexp.report.style import shorten


def summary(material: Material) -> list[str]:
    """Return the most important results, and reasons to doubt them, as sentences."""
    worse = [(run, worse_features(run)) for run in material.pretrainings]
    warnings = [f"{warning.removesuffix('.')} (run {run.id[:8]})." for run, warning in worse if warning]
    comparison = material.comparison
    if comparison is None or material.comparison_run is None:
        return [*warnings, "No methods have been compared yet."]
    groups = {key: sum(run.miou for run in runs) / len(runs) for key, runs in comparison.groups().items()}
    (method, start), miou = max(groups.items(), key=lambda item: item[1])
    constant = max(comparison.constants(), key=lambda constant: constant.scores["miou"])
    images = f"the {len(comparison.images)} validation images"
    if len(groups) > 1:
        result = (
            f"Of {len(groups)} combinations of method and start, {method} from {shorten(start)} has the largest mean "
            f"mIoU on {images}, {miou:.3f}"
        )
    else:
        result = f"On {images}, {method} from {shorten(start)} has a mean mIoU of {miou:.3f} over its seeds"
    result += (
        f"; the best constant prediction, {shorten(constant.label)} everywhere, has {constant.scores['miou']:.3f} "
        f"(run {material.comparison_run.id[:8]})."
    )
    return [*warnings, result, *compared.constant_warnings(comparison), *plain_sentences(comparison)]


def plain_sentences(comparison: Comparison) -> list[str]:
    """Put each difference into words; one whose interval includes zero is not called a difference."""
    return [_sentence(difference, comparison) for difference in comparison.differences]


def _sentence(difference: Difference, comparison: Comparison) -> str:
    if difference.is_between_methods:
        first, second, start = difference.first.method, difference.second.method, difference.first.start
        known = {None: "Over all starts", RANDOM: "From random weights"}
        scope = known.get(start, f"From {shorten(start or '')}")
    else:
        scope = f"With {difference.first.method}"
        first, second = f"the start from {shorten(difference.first.start or '')}", "the start from random weights"
    interval = difference.interval
    if len(comparison.images) < compared.MIN_IMAGES:
        return f"{scope}, {first} and {second} differ by {interval.difference:+.3f} mIoU, on too few images to judge."
    bounds = f"{comparison.confidence:.0%} interval {interval.low:+.3f} to {interval.high:+.3f}"
    basis = f"{bounds}, {count(difference.num_pairs, 'pair')} of runs"
    if interval.is_clear:
        word = "more" if interval.difference > 0 else "less"
        return f"{scope}, {first} has {abs(interval.difference):.3f} {word} mIoU than {second} ({basis})."
    return (
        f"{scope}, these images show no clear difference between {first} and {second}: {interval.difference:+.3f} mIoU "
        f"({basis})."
    )
