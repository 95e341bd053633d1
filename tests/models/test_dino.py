import math
import socket

import pytest
import torch
import torch.distributed as dist
from lightly.loss import DINOLoss as LightlyLoss
from torch.multiprocessing.spawn import spawn

from cvexp.models.backbone import create_backbone, forward_crops
from cvexp.models.dino import DINOHead, DINOLoss, DINONetwork, make_teacher, update_teacher
from tests.oracles import dino as oracle


@pytest.mark.parametrize("temperature", [0.02, 0.04, 0.07])
@pytest.mark.parametrize(
    ("global_views", "local_views", "images", "outputs"), [(2, 4, 8, 64), (2, 0, 5, 16), (1, 3, 2, 1000)]
)
def test_loss_center_and_gradient_equal_lightlys_over_several_steps(
    global_views: int, local_views: int, images: int, outputs: int, temperature: float
) -> None:
    torch.manual_seed(0)
    ours = DINOLoss(outputs, student_temperature=0.1, center_momentum=0.9)
    reference = LightlyLoss(outputs, student_temp=0.1, center_momentum=0.9)
    for step in range(4):
        teacher = torch.randn(global_views, images, outputs) * 0.1
        student = torch.randn(global_views + local_views, images, outputs) * 0.1
        student_a, student_b = student.clone().requires_grad_(), student.clone().requires_grad_()
        loss = ours(teacher, student_a, temperature + step / 1000)
        ours.update_center(teacher)
        expected = reference(list(teacher), list(student_b), teacher_temp=temperature + step / 1000)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(ours.center, reference.center.flatten(), rtol=0, atol=1e-6)
        torch.testing.assert_close(student_a.grad, student_b.grad, rtol=0, atol=1e-6)


def test_loss_equals_plain_loops() -> None:
    torch.manual_seed(1)
    teacher, student = torch.randn(2, 3, 7), torch.randn(4, 3, 7)
    loss = DINOLoss(7, student_temperature=0.1)
    loss.center.copy_(torch.randn(7))
    expected = oracle.loss(teacher.tolist(), student.tolist(), loss.center.tolist(), 0.05, 0.1)
    assert loss(teacher, student, 0.05).item() == pytest.approx(expected, rel=1e-5)


def test_loss_does_not_depend_on_the_order_of_the_images() -> None:
    torch.manual_seed(2)
    teacher, student, order = torch.randn(2, 6, 9), torch.randn(5, 6, 9), torch.randperm(6)
    loss = DINOLoss(9)
    torch.testing.assert_close(loss(teacher, student, 0.04), loss(teacher[:, order], student[:, order], 0.04))


def test_constant_logits_give_the_logarithm_of_the_number_of_outputs() -> None:
    assert DINOLoss(4096)(torch.ones(2, 3, 4096), torch.ones(6, 3, 4096), 0.04).item() == pytest.approx(
        math.log(4096), rel=1e-5
    )


def test_loss_is_computed_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DINOLoss(32)(torch.randn(2, 4, 32).bfloat16(), torch.randn(2, 4, 32).bfloat16(), 0.04)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("teacher_views", "student_views"), [(1, 1), (3, 2), (0, 2)])
def test_loss_needs_a_pair_of_different_views(teacher_views: int, student_views: int) -> None:
    with pytest.raises(ValueError, match=f"got {teacher_views} teacher and {student_views} student"):
        DINOLoss(8)(torch.randn(teacher_views, 2, 8), torch.randn(student_views, 2, 8), 0.04)


def test_a_center_momentum_of_one_disables_centering() -> None:
    loss = DINOLoss(8, center_momentum=1.0)
    loss.update_center(torch.randn(2, 4, 8))
    assert torch.equal(loss.center, torch.zeros(8))


def _center_of_a_process(rank: int, port: int, logits: torch.Tensor, results: torch.Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loss = DINOLoss(logits.shape[-1])
    loss.update_center(logits[:, rank::2])
    results[rank] = loss.center
    dist.destroy_process_group()


@pytest.mark.slow
def test_center_is_averaged_over_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logits, results = torch.randn(2, 6, 5).share_memory_(), torch.zeros(2, 5).share_memory_()
    spawn(_center_of_a_process, (port, logits, results), nprocs=2)
    whole = DINOLoss(5)
    whole.update_center(logits)
    for center in results:
        torch.testing.assert_close(center, whole.center)


def network() -> DINONetwork:
    return DINONetwork(create_backbone("test_resnet"), DINOHead(96, 16, 8, 32))


def test_the_teacher_is_a_copy_of_the_student_without_gradients() -> None:
    student = network()
    teacher = make_teacher(student)
    views = [torch.randn(4, 3, 32, 32)] * 2
    assert torch.equal(student(views), teacher(views))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    shared = {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert not shared


def test_the_teacher_equals_the_closed_form_of_the_moving_average() -> None:
    torch.manual_seed(0)
    student = network()
    teacher = make_teacher(student)
    start = [parameter.clone() for parameter in teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_()
    for _ in range(10):
        update_teacher(teacher, student, momentum=0.9)
    for initial, updated, target in zip(start, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(updated, 0.9**10 * initial + (1 - 0.9**10) * target, rtol=1e-5, atol=1e-6)


def test_head_returns_cosines_with_its_prototypes() -> None:
    torch.manual_seed(0)
    head = DINOHead(12, 16, 8, 20, batch_norm=True)
    x = torch.randn(5, 12)
    logits = head(x)
    expected = torch.nn.functional.cosine_similarity(head.mlp(x)[:, None], head.last_layer[None], dim=-1)
    torch.testing.assert_close(logits, expected)
    with torch.no_grad():
        head.last_layer.mul_(7)  # the length of the prototypes has no effect
    torch.testing.assert_close(head(x), logits)


def test_crops_of_one_resolution_share_a_forward_pass() -> None:
    backbone = create_backbone("test_resnet").eval()
    shapes = []
    backbone.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    crops = [torch.randn(3, 3, 48, 48) for _ in range(2)] + [torch.randn(3, 3, 32, 32) for _ in range(4)]
    together = forward_crops(backbone, crops)
    assert shapes == [(6, 3, 48, 48), (12, 3, 32, 32)]
    torch.testing.assert_close(together, torch.cat([backbone(crop) for crop in crops]), rtol=1e-4, atol=1e-5)
