"""Training and evaluation stay on the GPU: no tensor is left on the CPU, and nothing waits for the GPU.

This needs no GPU, because the tensors are fake: they have a shape, a type and a device, but no values. What can't be
seen in this way are the backward pass, and waits inside of an operation of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cvexp import data, plugins
from cvexp.composition import compose
from cvexp.data.index import IGNORE
from cvexp.data.kept import ImagesOnDevice
from cvexp.inference.segmenter import Segmenter
from cvexp.metrics import iou
from cvexp.models.attention import NORMALIZATIONS, SCORES, ClassAttention
from cvexp.weights.start import Start
from tests.helpers import TINY, TINY_SEGMENTATION
from tests.tasks.test_simclr import TINY as TINY_SIMCLR
from tests.test_outside import outside  # noqa: F401, a fixture

pytestmark = pytest.mark.usefixtures("outside")

GPU = torch.device("cuda", 0)
FAKE = FakeTensorMode(allow_non_fake_inputs=True)

COMMON = [setting for setting in TINY if not setting.startswith("task.")]
SEGMENTATION = [*TINY_SEGMENTATION, "task.picture_every_n_epochs=1000"]  # pictures may wait, and are not due
CASES = {
    "dino": ["task=dino", *TINY, "task.solarize=[1,1,1]"],
    "dino, ViT": ["task=dino", *TINY, "backbone.name=test_vit", "task.global_crops=1", "task.batch_norm=true"],
    "simclr": [*TINY_SIMCLR, "task.blur=1"],
    "multiclass": ["task=multiclass", *SEGMENTATION],
    "multiclass, frozen": [
        *("task=multiclass", *SEGMENTATION, "task.freeze_backbone=true", "task.decoder=deeplabv3"),
        "task.class_weights={background: 0.5}",
    ],
    "attention": ["task=attention", *SEGMENTATION],
    "attention, encoder": [
        *("task=attention", *SEGMENTATION, "task.placement=encoder", "task.kind=cosine", "task.foreground_weight=2"),
        *("task.normalization=mean_one", "task.freeze_backbone=true", "backbone.name=test_vit"),
    ],
    "rotation": ["task=rotation", *COMMON],
    "linear": ["task=linear", *(setting for setting in SEGMENTATION if "decoder" not in setting)],
}
TASKS = [name for name in CASES if "," not in name]


class OnCPUError(AssertionError):
    """A tensor was on the CPU."""


FAILURES = (
    OnCPUError,
    getattr(fake_tensor, "FakeTensorDeviceMismatchError", RuntimeError),  # in PyTorch 2.11, a plain RuntimeError
    DataDependentOutputException,  # the CPU needs a value
    DynamicOutputShapeException,  # the CPU needs to know how many values are selected
)


class OnGPU(TorchDispatchMode):
    """Fails if an operation takes or returns a tensor on the CPU, even one of zero dimensions.

    Args:
        may_upload: Whether tensors may be made on the CPU, and be copied to the GPU without waiting for it.
    """

    def __init__(self, may_upload: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.may_upload = may_upload

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.prim.device.default:  # asks for the device
            return result
        taken, returned = device_types((args, kwargs)), device_types(result)
        is_upload = "cuda" not in taken and ("cuda" not in returned or kwargs.get("non_blocking"))
        if "cpu" in taken | returned and not (self.may_upload and is_upload):
            raise OnCPUError(f"{func} takes tensors on {sorted(taken)}, and returns tensors on {sorted(returned)}")
        return result


def device_types(values: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


class Case(NamedTuple):
    """A method with its batches, on the fake GPU, before the views are made.

    Attributes:
        module: The training module.
        train: A training batch.
        val: The batches of each validation loader.
    """

    module: Any
    train: Any
    val: list[list[Any]]

    def run_training(self) -> None:
        self.module.train()
        with FAKE, OnGPU():
            self.module.training_step(self.module.on_after_batch_transfer(self.train, 0), 0)
            self.module.after_optimizer_step(0.5)

    def run_validation(self) -> None:
        self.module.eval()
        with torch.inference_mode(), FAKE, OnGPU():
            self.module.on_validation_epoch_start()
            for number, batches in enumerate(self.val):
                for i, batch in enumerate(batches):
                    of_several = [number] if len(self.val) > 1 else []
                    self.module.validation_step(self.module.on_after_batch_transfer(batch, number), i, *of_several)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Build a case, once."""
    root = tmp_path_factory.mktemp("shapes")

    @cache
    def build(name: str) -> Case:
        config = compose(*CASES[name], f"dataset.root={root}", "dataset.keep=none")
        splits = data.load(config.dataset, config.task.role)  # type: ignore[arg-type]
        module = plugins.load("task", config.task.name).Method(config, splits)
        strategy = SimpleNamespace(root_device=GPU, reduce=lambda value, reduce_op: value)
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=1, strategy=strategy)
        module.setup("fit")
        train, val = next(iter(module.train_dataloader())), module.val_dataloader()
        val = [list(loader) for loader in (val if isinstance(val, list) else [val])]
        with FAKE:
            module.to(GPU)
            to_gpu = [[module.transfer_batch_to_device(batch, GPU, 0) for batch in batches] for batches in val]
            return Case(module, module.transfer_batch_to_device(train, GPU, 0), to_gpu)

    return build


def test_no_method_is_left_out() -> None:
    roles = {name: plugins.load("task", name).Config.role for name in plugins.known("task")}
    assert sorted(TASKS) == [name for name, role in roles.items() if role != "job"]


@pytest.mark.parametrize("name", CASES)
def test_training_and_validation_stay_on_the_gpu(cases: Callable[[str], Case], name: str) -> None:
    case = cases(name)
    case.run_training()
    case.run_validation()


@pytest.mark.parametrize("name", TASKS)
def test_images_that_are_kept_on_the_gpu_are_batched_there(
    cases: Callable[[str], Case], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, train, _ = cases(name)
    with FAKE:
        monkeypatch.setattr(module, "images", [ImagesOnDevice(images.source, GPU) for images in module.images])
    loader = module.train_dataloader()
    keys = next(iter(loader.sampler))
    with FAKE, OnGPU(may_upload=True):
        batch = module.transfer_batch_to_device(loader.dataset[keys], GPU, 0)
    tensors, expected = (
        [x for x in tree_leaves(batch_or_train) if isinstance(x, Tensor)] for batch_or_train in (batch, train)
    )
    assert [(x.shape, x.dtype, x.device) for x in tensors] == [(x.shape, x.dtype, x.device) for x in expected]
    Case(module, batch, []).run_training()


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("multiclass", "attention", "linear"))])
def test_networks_of_finished_runs_stay_on_the_gpu(cases: Callable[[str], Case], name: str) -> None:
    module = cases(name).module
    num_classes, size = 9, module.config.dataset.image_size  # more classes than the attention queries at once
    model = type(module).build_model(module.config, num_classes, Start())
    segmenter = Segmenter(model, module.config, [f"{i}" for i in range(num_classes)], torch.device("cpu"))
    with FAKE:
        segmenter.model.to(GPU)
        segmenter.normalize.to(GPU)
        segmenter.device = GPU
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=GPU)
        labels = torch.zeros(2, size, size, dtype=torch.uint8, device=GPU)
        with torch.inference_mode(), OnGPU():
            prediction = segmenter.predict_squares(images)
            predicted = segmenter.model.label(segmenter.normalize(images))
            queries = torch.arange(num_classes, device=GPU).expand(2, -1)
            for counts in (
                iou.count_labels(predicted, labels, num_classes, IGNORE)[:, 1:],
                iou.count_masks(prediction.masks, labels, queries, IGNORE),
            ):
                assert (counts.shape, counts.device) == ((2, num_classes, 3), GPU)
        assert segmenter.label_squares(torch.zeros(2, 3, size, size, dtype=torch.uint8)).device.type == "cpu"


@pytest.mark.parametrize("score_function", SCORES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_kind_of_attention_stays_on_the_gpu(score_function: str, normalization: str) -> None:
    attention = ClassAttention(3, 8, 4, 2, score_function, normalization)
    with FAKE:
        attention.to(GPU)
        features, queries = torch.zeros(2, 8, 4, 4, device=GPU), torch.zeros(2, 3, dtype=torch.int64, device=GPU)
        with OnGPU():
            attended, _ = attention(features, queries)
    assert (attended.shape, attended.device) == ((2, 3, 4, 4, 4), GPU)


MISTAKES: dict[str, Callable[[Tensor], object]] = {
    "copies to the CPU": lambda x: x.cpu(),
    "asks for a value": lambda x: x.sum().item(),
    "adds a vector on the CPU": lambda x: x + torch.ones(1),
    "adds a number on the CPU": lambda x: x + torch.tensor(1),
    "copies to the CPU without waiting": lambda x: x.to("cpu", non_blocking=True),
    "copies into a tensor on the CPU": lambda x: torch.empty(x.shape, dtype=x.dtype).copy_(x),
    "decides by a value": lambda x: bool((x > 0).any()),
    "selects by value": lambda x: x[x > 0],
    "selects with an index on the CPU": lambda x: x[torch.tensor([0])],
    "moves a constant to the GPU": lambda x: torch.tensor([1.0], device=x.device),
}


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake: str, is_inference: bool) -> None:
    with torch.inference_mode(is_inference), FAKE, OnGPU(), pytest.raises(FAILURES):
        MISTAKES[mistake](torch.zeros(4, device=GPU))


def test_an_upload_must_be_permitted_and_must_not_wait() -> None:
    with FAKE, OnGPU(may_upload=True):
        torch.ones(1).to(GPU, non_blocking=True)
        with pytest.raises(OnCPUError):
            torch.ones(1).to(GPU)


@pytest.mark.parametrize("mistake", list(MISTAKES)[:4])
@pytest.mark.parametrize("name", TASKS)
def test_mistakes_of_a_method_are_noticed(
    cases: Callable[[str], Case], name: str, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases(name)
    method = type(case.module)
    of_validation = "evaluate" if hasattr(method, "evaluate") else "predict"
    made = []
    for hook, run in (("step", case.run_training), (of_validation, case.run_validation)):
        original = getattr(method, hook)

        def mistaken(*args: Any, original: Callable[..., Any] = original) -> Any:
            result = original(*args)
            made.append(mistake)
            MISTAKES[mistake](tree_leaves(result)[0])
            return result

        with monkeypatch.context() as patch:
            patch.setattr(method, hook, mistaken)
            with pytest.raises(FAILURES):
                run()
    assert len(made) == 2
