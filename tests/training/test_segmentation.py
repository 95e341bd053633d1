"""Both segmentation tasks, end to end on small data."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cvexp.composition import compose
from cvexp.data import load
from cvexp.report import segmentation as pictures
from cvexp.report.segmentation import Example, predictions
from cvexp.tasks.attention import Attention, draw_classes
from cvexp.tasks.multiclass import Multiclass
from tests.helpers import CAT, DOG, TINY, TINY_SEGMENTATION, Outcome, checkpoint, runs, store, write_coco_objects

METRICS = {"loss", "miou", "miou_all", "pixel_accuracy", "miou_image", "presence_f1", "iou/disk", "iou/background"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "attention"])
def test_a_run_leaves_scores_pictures_and_checkpoints(cvexp: Callable[..., Outcome], task: str) -> None:
    outcome = cvexp(f"task={task}", *TINY_SEGMENTATION, "task.picture_every_n_epochs=1")
    assert outcome.code == 0, outcome.message
    (run,) = runs()
    wanted = {f"{split}/{name}" for split in ("val", "best") for name in METRICS}
    wanted |= {"train/loss"}
    trained = {"train/miou_asked"} if task == "attention" else {"train/miou", "train/pixel_accuracy"}
    wanted |= trained | ({"val/miou_masks"} if task == "attention" else set())
    assert wanted <= set(run.data.metrics)
    assert len(store().get_metric_history(run.info.run_id, "val/miou")) == 3  # untrained, and each epoch
    for name in trained:
        assert len(store().get_metric_history(run.info.run_id, name)) == 2
    assert run.data.tags["start"] == "random"
    images = store().list_artifacts(run.info.run_id, "images")
    keys = {re.split("[%+]", Path(item.path).name)[0] for item in images}
    assert keys == ({"predictions", "attention"} if task == "attention" else {"predictions"})
    drawn = {Path(item.path).stem for item in store().list_artifacts(run.info.run_id, "pictures")}
    of_attention = {"attention", "heads", "one_after_another"} if task == "attention" else set()
    assert drawn == {"best_median_worst"} | of_attention
    assert checkpoint(run, "best").keys() == checkpoint(run).keys()
    for name in ("best", "last"):
        path = store().download_artifacts(run.info.run_id, f"checkpoints/{name}.ckpt")
        said = torch.load(path, weights_only=True)["cvexp"]
        assert (said["run_id"], said["config"]["task"]["name"]) == (run.info.run_id, task)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["task=attention", "task.placement=encoder", "task.dim=12", "task.heads=3"],
        ["task=attention", "task.kind=additive", "task.normalization=softmax", "task.decoder=deeplabv3"],
        ["task=attention", "task.kind=cosine", "task.normalization=mean_one", "task.output_stride=8"],
        ["task=attention", "task.kind=dot_product", "task.placement=encoder", "task.decoder=deeplabv3"],
        ["task=multiclass", "task.decoder=deeplabv3", "task.class_weights={background: 0.5, star: 2}"],
        ["task=multiclass", "backbone.name=test_vit", "trainer.max_steps=1"],
        ["task=multiclass", "backbone.name=test_convnext", "trainer.max_steps=1"],
    ],
)
def test_every_variant_trains(cvexp: Callable[..., Outcome], settings: list[str]) -> None:
    names = {setting.partition("=")[0] for setting in settings}
    tiny = [setting for setting in TINY_SEGMENTATION if setting.partition("=")[0] not in names]
    outcome = cvexp(*settings, *tiny)
    assert outcome.code == 0, outcome.message


@pytest.mark.slow
def test_an_output_stride_other_than_16_is_printed(cvexp: Callable[..., Outcome]) -> None:
    tiny = [setting for setting in TINY_SEGMENTATION if not setting.startswith("backbone.")]
    for backbone, printed in (("test_resnet", 0), ("ghostnet_050", 1)):
        outcome = cvexp("task=multiclass", *tiny, f"backbone.name={backbone}", "trainer.max_steps=1")
        assert outcome.code == 0, outcome.message
        assert outcome.message.count("output stride: 32") == printed


@pytest.mark.slow
def test_pretraining_at_other_sizes_starts_a_vision_transformer(cvexp: Callable[..., Outcome]) -> None:
    vit = ["backbone.name=vit_tiny_patch16_224", "+backbone.args.embed_dim=24", "+backbone.args.depth=2"]
    tiny = [[s for s in settings if not s.startswith("backbone.")] for settings in (TINY, TINY_SEGMENTATION)]
    assert cvexp("task=dino", *tiny[0], *vit, "trainer.max_steps=1").code == 0
    outcome = cvexp("task=multiclass", *tiny[1], *vit, "trainer.max_steps=1", "backbone.weights=latest:dino")
    assert outcome.code == 0, outcome.message
    said = runs()[0].data.tags["backbone.loaded"]
    assert "left random: decoder" in said, said  # the backbone would come first


@pytest.mark.slow
def test_a_frozen_backbone_stays_as_it_is_and_the_decoder_learns(cvexp: Callable[..., Outcome]) -> None:
    for freeze in ("true", "false"):
        assert cvexp("task=attention", *TINY_SEGMENTATION, f"task.freeze_backbone={freeze}").code == 0
    thawed, frozen = map(checkpoint, runs())
    backbone = [key for key in frozen if ".backbone." in key and not key.endswith("num_batches_tracked")]
    torch.manual_seed(0)
    from cvexp.models.backbone import create_backbone

    untrained = create_backbone("test_resnet", output_stride=16).state_dict()
    assert all(torch.equal(frozen[key], untrained[key.partition(".backbone.")[2]]) for key in backbone)
    statistics = [key for key in backbone if key.endswith("running_mean")]
    assert statistics
    assert not any(torch.equal(thawed[key], frozen[key]) for key in statistics)  # batch norm goes with what learns
    assert not all(torch.equal(thawed[key], frozen[key]) for key in backbone)
    assert not torch.equal(frozen["model.classifier.weight"], thawed["model.classifier.weight"])


@pytest.mark.slow
def test_the_backbone_has_its_own_learning_rate(cvexp: Callable[..., Outcome]) -> None:
    assert (
        cvexp("task=multiclass", *TINY_SEGMENTATION, "task.backbone_lr_factor=0", "optimizer.weight_decay=0").code == 0
    )
    (run,) = runs()
    from cvexp.models.backbone import create_backbone

    torch.manual_seed(0)
    untrained = dict(create_backbone("test_resnet", output_stride=16).named_parameters())
    trained = checkpoint(run)
    assert all(torch.equal(trained[f"model.encoder.backbone.{key}"], value) for key, value in untrained.items())


@pytest.mark.slow
def test_segmentation_starts_from_the_newest_dino_run_of_its_seed(cvexp: Callable[..., Outcome]) -> None:
    same_data = [s for s in TINY_SEGMENTATION if not s.startswith(("trainer.max", "task."))]
    dino = [s for s in TINY if s.startswith("task.")]
    for seed in (1, 0, 2):
        assert cvexp("task=dino", *same_data, *dino, "trainer.max_epochs=1", f"seed={seed}").code == 0
    newest, of_seed_0, _ = runs()
    for seed, expected in ((0, of_seed_0), (3, newest)):
        outcome = cvexp("task=multiclass", *TINY_SEGMENTATION, "backbone.weights=latest:dino", f"seed={seed}")
        assert outcome.code == 0, outcome.message
        run = runs()[0]
        assert run.data.tags["start"] == "dino"
        assert run.data.tags["weights_from"] == run.data.tags["mlflow.parentRunId"] == expected.info.run_id
        assert "tensors loaded" in run.data.tags["backbone.loaded"]
        assert "weights.json" in {item.path for item in store().list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_a_dino_run_of_another_network_or_other_data_is_not_taken(cvexp: Callable[..., Outcome]) -> None:
    dino = [s for s in TINY if not s.startswith("trainer.max")]
    assert cvexp("task=dino", *dino, "trainer.max_steps=1", "+backbone.args.channels=[8,8,8,8]").code == 0
    same = "+backbone.args.channels=[8,8,8,8]"
    for others in (["+backbone.args.channels=[8,8,8,16]"], [], [same, "dataset.root=elsewhere"]):
        outcome = cvexp("task=multiclass", *TINY_SEGMENTATION, "backbone.weights=latest:dino", *others)
        assert outcome.code == 1
        assert "no finished dino run" in outcome.message


def test_validation_images_without_any_of_the_classes_are_told(cvexp: Callable[..., Outcome]) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for i in range(4):
            Path(f"mine/{split}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (40 * i, 90, 20 + 9 * (split == "val"))).save(f"mine/{split}/{i}.jpg")
            mask = Image.new("L", (64, 64), 0)
            mask.paste(1 if split == "train" else 0, (8, 8, 40, 40))
            mask.save(f"mine/{split}/{i}.png")
    masks = ["dataset.root=mine", "dataset.train_masks=train", "dataset.val_masks=val", "dataset.mask_values={lake: 1}"]
    tiny = [s for s in TINY_SEGMENTATION if not s.startswith(("dataset.train_", "dataset.val_", "dataset.test_"))]
    outcome = cvexp("task=multiclass", "dataset=folder", *masks, "dataset.empty_images=true", *tiny)
    assert outcome.code == 1
    assert "no validation image has any of the classes ['lake']" in outcome.message


def test_classes_are_drawn_as_told() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(3, 4, 4, dtype=torch.long)
    labels[0, 0] = 2
    labels[0, 1] = 5
    labels[1, 2] = 1
    labels[1, 3] = 255
    present = draw_classes(labels, num_classes=5, num_queries=4000, present_probability=1.0)
    assert set(present[0].tolist()) == {1, 4}
    assert set(present[1].tolist()) == {0}
    assert set(present[2].tolist()) == {0, 1, 2, 3, 4}  # none is there, so any
    anything = draw_classes(labels, num_classes=5, num_queries=4000, present_probability=0.0)
    assert torch.bincount(anything[1], minlength=5).tolist() == pytest.approx([800] * 5, rel=0.15)
    half = draw_classes(labels, num_classes=5, num_queries=4000, present_probability=0.5)
    assert (half[1] == 0).float().mean().item() == pytest.approx(0.5 + 0.5 / 5, abs=0.03)


@pytest.fixture
def segmenters() -> tuple[Multiclass, Attention]:
    """Both methods with three classes."""
    classes = "dataset.classes=[disk,star,square]"
    class_weights = "task.class_weights={background: 1, disk: 0.5, star: 2, square: 1}"
    configs = [compose("task=multiclass", *TINY_SEGMENTATION, classes, class_weights)]
    configs.append(compose("task=attention", *TINY_SEGMENTATION, classes))
    splits = load(configs[0].dataset, "segmentation")
    return Multiclass(configs[0], splits), Attention(configs[1], splits)


def test_ignored_pixels_change_neither_loss_nor_gradient(segmenters: tuple[Multiclass, Attention]) -> None:
    """An image whose right half is ignored, with anything predicted there; and one that is ignored as a whole."""
    multiclass, attention = segmenters
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 6, 6))
    labels[:, :, 3:] = 255
    labels[1] = 255
    queries = torch.arange(3).expand(2, -1)
    losses_of: list[tuple[int, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]] = [
        (4, lambda logits: multiclass.losses(logits, labels)),
        (3, lambda logits: attention.losses(logits, labels, queries)),
    ]
    for channels, losses in losses_of:
        logits = torch.randn(2, channels, 6, 6)
        values = []
        for noise in (0.0, 100.0):
            disturbed = (logits + noise * (labels == 255)[:, None] * torch.randn_like(logits)).requires_grad_()
            loss, weights = losses(disturbed)
            loss.sum().backward()
            values.append((loss.detach(), weights, disturbed.grad))
        torch.testing.assert_close(values[0], values[1])
        assert values[0][0][0] > 0
        assert values[0][0][1] == values[0][1][1] == 0


def test_class_weights_equal_pytorchs_weighted_mean(segmenters: tuple[Multiclass, Attention]) -> None:
    multiclass, _ = segmenters
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    labels[0, 0] = 255
    losses, weights = multiclass.losses(logits, labels)
    class_weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    expected = torch.nn.functional.cross_entropy(logits, labels, class_weights, ignore_index=255)
    torch.testing.assert_close(losses.sum() / weights.sum(), expected)


def test_pictures_over_the_epochs_show_images_that_have_classes(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[list[set[int]]] = []

    def note(examples: list[Example], classes: Sequence[str], state: str, dpi: int) -> Figure:
        shown.append([set(np.unique(example.labels).tolist()) - {0, 255} for example in examples])
        return predictions(examples, classes, state, dpi)

    monkeypatch.setattr(pictures, "predictions", note)
    root = write_coco_objects(tmp_path / "coco", [None, CAT, None, CAT, None, CAT, CAT, None, DOG, None])
    tiny = [
        s
        for s in TINY_SEGMENTATION
        if not s.startswith(("dataset.train_", "dataset.val_", "dataset.test_", "trainer.max"))
    ]
    data = ["dataset=coco", f"dataset.root={root}", "dataset.classes=[cat,dog]", "dataset.empty_images=true"]
    outcome = cvexp("task=multiclass", *tiny, *data, "task.pictured_images=3", "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.message
    assert shown == [[{1}, {1}, {2}]] * 2  # untrained, and after the epoch
