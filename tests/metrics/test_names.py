import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric, _validate_param

from cvexp.metrics.iou import summarize
from cvexp.metrics.names import safe_name

ODD = [
    *("R&D", "R_D", "car (parked)", "car [parked]", "car _parked_", "<b>x</b>", '"a"', "a/b", "a//b", "/", "..", "."),
    *("", " ", "$x$", "\U0001f697", "a\nb", "a\n", "e\u0301", "\u00e9", "x" * 300, "x" * 301, "x" * 299 + "y", "a:b"),
]


@pytest.mark.parametrize("name", ["cat", "traffic light", "t-shirt", "no. 1", "Straße", "人"])
def test_ordinary_names_do_not_change(name: str) -> None:
    assert safe_name(name) == name


def test_different_texts_have_different_names() -> None:
    texts = [*ODD, *map(safe_name, ODD)]  # a class may have the name that another one gets
    assert len(set(map(safe_name, texts))) == len(set(texts))


@given(st.text(max_size=400))
@example(safe_name("R&D"))
def test_mlflow_accepts_all_names(text: str) -> None:
    name = f"train/iou/{safe_name(text)}"
    _validate_metric(name, 1.0, 0, 0)
    _validate_param(f"task.class_weights.{safe_name(text)}", "1")


@given(st.text(max_size=400), st.text(max_size=400))
def test_only_equal_texts_have_equal_names(first: str, second: str) -> None:
    assert (safe_name(first) == safe_name(second)) == (first == second)


def test_scores_have_a_name_for_each_class() -> None:
    scores = summarize(np.ones((1, 1 + len(ODD), 3), dtype=np.int64), ODD)
    assert len([name for name in scores if name.startswith("iou/")]) == 1 + len(ODD)
