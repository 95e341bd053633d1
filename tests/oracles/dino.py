"""DINO's loss by plain loops, from the paper's algorithm 1."""

import math

Logits = list[list[list[float]]]  # view x image x output


def loss(
    teacher: Logits, student: Logits, center: list[float], teacher_temperature: float, student_temperature: float
) -> float:
    """Compute the loss of all views."""
    total, terms = 0.0, 0
    for i, teacher_view in enumerate(teacher):
        for j, student_view in enumerate(student):
            if i == j:
                continue
            for t, s in zip(teacher_view, student_view, strict=True):
                p = _softmax([(value - c) / teacher_temperature for value, c in zip(t, center, strict=True)])
                q = _softmax([value / student_temperature for value in s])
                total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
            terms += len(teacher_view)
    return total / terms


def _softmax(values: list[float]) -> list[float]:
    highest = max(values)
    exponentials = [math.exp(value - highest) for value in values]
    return [value / sum(exponentials) for value in exponentials]
