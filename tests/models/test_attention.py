import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvexp.models.attention import NORMALIZATIONS, SCORES, ClassAttention

NUM_CLASSES, CHANNELS, DIM, HEIGHT, WIDTH = 5, 12, 8, 3, 7


def query_all(attention: ClassAttention, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    queries = torch.arange(NUM_CLASSES).expand(len(x), -1)
    attended, weights = attention(x, queries)
    return attended, weights


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_sum_of_the_attended_map_equals_pytorchs_scaled_dot_product_attention(heads: int) -> None:
    torch.manual_seed(0)
    attention = ClassAttention(NUM_CLASSES, CHANNELS, DIM, heads, normalization="softmax")
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
    attended, _ = query_all(attention, x)
    positions = x.flatten(2).transpose(1, 2)

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.view(*t.shape[:-1], heads, DIM // heads).transpose(-2, -3)

    q = split(attention.query.weight.T.expand(2, -1, -1))
    expected = F.scaled_dot_product_attention(q, split(attention.key(positions)), split(attention.value(positions)))
    expected = expected.transpose(1, 2).flatten(2)
    torch.testing.assert_close(attended.sum(dim=(-2, -1)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_sum_of_the_attended_map_equals_multihead_attention_with_the_same_weights(heads: int) -> None:
    torch.manual_seed(1)
    attention = ClassAttention(NUM_CLASSES, CHANNELS, DIM, heads, normalization="softmax")
    reference = nn.MultiheadAttention(DIM, heads, kdim=CHANNELS, vdim=CHANNELS, batch_first=True)
    with torch.no_grad():
        reference.q_proj_weight.copy_(torch.eye(DIM))
        reference.k_proj_weight.copy_(attention.key.weight)
        reference.v_proj_weight.copy_(attention.value.weight)
        reference.in_proj_bias.copy_(torch.cat([torch.zeros(DIM), attention.key.bias, attention.value.bias]))
        reference.out_proj.weight.copy_(torch.eye(DIM))
        reference.out_proj.bias.zero_()
    x = torch.randn(3, CHANNELS, HEIGHT, WIDTH)
    attended, weights = query_all(attention, x)
    positions = x.flatten(2).transpose(1, 2)
    query = attention.query.weight.T.expand(3, -1, -1)
    expected, expected_weights = reference(query, positions, positions, average_attn_weights=False)
    torch.testing.assert_close(attended.sum(dim=(-2, -1)), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights.flatten(-2).transpose(1, 2), expected_weights, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("score_function", SCORES)
def test_scores_equal_plain_loops(score_function: str) -> None:
    torch.manual_seed(2)
    heads, d = 2, DIM // 2
    attention = ClassAttention(NUM_CLASSES, CHANNELS, DIM, heads, score_function, "softmax")
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    _, weights = query_all(attention, x)
    for c in range(NUM_CLASSES):
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            q = attention.query.weight[part, c]
            scores = []
            for row in range(HEIGHT):
                for column in range(WIDTH):
                    k = attention.key(x[0, :, row, column])[part]
                    if score_function == "additive":
                        terms = [attention.additive[head, i] * torch.tanh(q[i] + k[i]) for i in range(d)]
                        score = torch.stack(terms).sum()
                    elif score_function == "cosine":
                        score = 10 * torch.dot(q, k) / q.norm() / k.norm()
                    else:
                        score = torch.dot(q, k) / (math.sqrt(d) if score_function == "scaled_dot_product" else 1)
                    scores.append(score)
            expected = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            torch.testing.assert_close(weights[0, c, head].flatten(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("heads", [1, 4])
def test_a_feature_affects_the_attended_map_only_at_its_position(normalization: str, heads: int) -> None:
    """The map is zero except at one position. Without a bias, the value of zero is zero, and so is the output there."""
    torch.manual_seed(3)
    attention = ClassAttention(NUM_CLASSES, CHANNELS, DIM, heads, normalization=normalization)
    nn.init.zeros_(attention.value.bias)
    for row, column in ((0, 0), (2, 1), (1, 6)):
        x = torch.zeros(2, CHANNELS, HEIGHT, WIDTH)
        x[1, :, row, column] = torch.randn(CHANNELS)
        attended, weights = query_all(attention, x)
        weight = weights[1, :, :, row, column].repeat_interleave(DIM // heads, dim=1)
        expected = torch.zeros_like(attended)
        expected[1, :, :, row, column] = weight * attention.value(x[1, :, row, column])
        torch.testing.assert_close(attended, expected)
        assert expected.abs().max() > 0.01


def test_mean_one_keeps_the_scale_for_all_sizes_and_softmax_does_not() -> None:
    torch.manual_seed(4)
    attention = ClassAttention(NUM_CLASSES, CHANNELS, DIM, num_heads=2)
    means = {}
    for normalization in ("mean_one", "softmax"):
        attention.normalization = normalization
        for side in (4, 32):
            _, weights = query_all(attention, torch.randn(2, CHANNELS, side, side))
            means[normalization, side] = weights.mean().item()
    assert means["mean_one", 4] == pytest.approx(1)
    assert means["mean_one", 32] == pytest.approx(1, rel=1e-5)
    assert means["softmax", 4] == pytest.approx(1 / 16)
    assert means["softmax", 32] == pytest.approx(1 / 1024)


def test_a_query_does_not_depend_on_the_others() -> None:
    torch.manual_seed(5)
    attention = ClassAttention(NUM_CLASSES, CHANNELS, DIM, num_heads=2)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
    attended_all, _ = query_all(attention, x)
    attended, _ = attention(x, torch.tensor([[3, 0], [1, 1]]))
    torch.testing.assert_close(attended[0], attended_all[0, [3, 0]])
    torch.testing.assert_close(attended[1], attended_all[1, [1, 1]])


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="dim=8 is not divisible by num_heads=3"):
        ClassAttention(NUM_CLASSES, CHANNELS, DIM, num_heads=3)
