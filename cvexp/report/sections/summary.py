"""The summary at the top of the report."""

from __future__ import annotations

from cvexp.metrics.bootstrap import MIN_IMAGES
from cvexp.metrics.comparison import Comparison, Difference
from cvexp.report import comparison as compared
from cvexp.report.sections.material import Material, count, worse_features
from cvexp.report.study import read_study
from cvexp.report.study_text import sentences, weights
from cvexp.report.style import shorten


def summary(material: Material) -> list[str]:
    """Return the most important results and warnings, as sentences."""
    worse = [(run, worse_features(run)) for run in material.pretrainings]
    warnings = [f"{warning.removesuffix('.')} (run {run.id[:8]})." for run, warning in worse if warning]
    comparison = material.comparison
    if comparison is None or material.comparison_run is None:
        return [*warnings, *(_of_study(material) or ["No methods have been compared yet."])]
    groups = {key: sum(run.miou for run in runs) / len(runs) for key, runs in comparison.groups().items()}
    (method, start), miou = max(groups.items(), key=lambda item: item[1])
    constant = max(comparison.constants(), key=lambda constant: constant.scores["miou"])
    images = f"the {len(comparison.images)} {comparison.split_name} images"
    if len(groups) > 1:
        result = (
            f"Of {len(groups)} combinations of method and initial weights, {method} from {weights(start)} has the "
            f"highest mean mIoU on {images}, {miou:.3f}"
        )
    else:
        result = f"On {images}, {method} from {weights(start)} has a mean mIoU of {miou:.3f} over its seeds"
    result += (
        f"; the best constant prediction, {shorten(constant.label)} for every pixel, has {constant.scores['miou']:.3f} "
        f"(run {material.comparison_run.id[:8]})."
    )
    results = [result, *compared.constant_warnings(comparison), *plain_sentences(comparison)]
    return [*warnings, *results, *_of_study(material)]


def _of_study(material: Material) -> list[str]:
    """Return what the study found, in sentences."""
    study = material.study and read_study(material.study.store, material.study.id)
    return sentences(study) if study else []


def plain_sentences(comparison: Comparison) -> list[str]:
    """Return a sentence for each difference; if its interval includes zero, the sentence claims no difference."""
    return [_sentence(difference, comparison) for difference in comparison.differences]


def _sentence(difference: Difference, comparison: Comparison) -> str:
    if difference.is_between_methods:
        first, second, start = difference.first.method, difference.second.method, difference.first.start
        scope = "Averaged over all initial weights" if start is None else f"From {weights(start)}"
    else:
        scope = f"With {difference.first.method}"
        first, second = (f"runs from {weights(group.start or '')}" for group in (difference.first, difference.second))
    interval = difference.interval
    word = "higher" if interval.difference > 0 else "lower"
    result = f"{scope}, the mIoU of {first} is {abs(interval.difference):.3f} {word} than that of {second}"
    if len(comparison.images) < MIN_IMAGES:
        return f"{result}, on too few images to judge."
    bounds = f"{comparison.confidence:.0%} interval {interval.low:+.3f} to {interval.high:+.3f}"
    basis = f"{bounds}, {count(difference.num_pairs, 'pair')} of runs"
    if interval.is_clear:
        return f"{result} ({basis})."
    return (
        f"{scope}, these images show no clear difference between the mIoU of {first} and that of {second}: "
        f"{interval.difference:+.3f} ({basis})."
    )
