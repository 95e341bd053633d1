"""How fast is DINO training with cvexp, compared with a plain training loop and with lightly?

    python experiments/speed_against_peers.py default
    python experiments/speed_against_peers.py course --root PATH_OF_VOC
    python experiments/speed_against_peers.py small --rounds 3 --seconds 10 trainer.precision=bf16-mixed

Expected (two cores, medians of four or five rounds): with `default`, fit trains 39.6 images/s, 1.25 times plain, 1.32
times lightly, and 0.97 of the bare step. With `course`, it trains 13.0 images/s: 1.30, 1.35 and 0.98. With `small`, it
trains 1130 images/s: 2.5, 3.1 and 0.82, because the views take a sixth as long as the step, on the same two cores.

All train on a CPU, with the same crops, network, views, batch size and optimizer:

- plain: the recipe of the paper, with torchvision's transforms of PIL images in the training process.
- lightly: lightly's transform, head, loss and momentum update, in the loop of its documentation, with as many worker
  processes as cvexp. This loop runs the backbone once per view and does not clip the gradient.
- fit: `fit` of cvexp with all that it records, without validation and checkpoints.
- step: cvexp's training step on one batch already in memory. No loading can make `fit` faster than this.

The settings are `course` (ResNet-18, 2 x 192 and 4 x 72 px, batches of 16), `default` (ResNet-18, 2 x 96 and 4 x 48 px,
batches of 64) and `small` (the demo: timm's test_resnet, 2 x 32 and 2 x 16 px, batches of 64). The crops are those of
the generated shapes or, with `--root`, those of six classes of PASCAL VOC. plain and lightly read them from PNG files,
which are no larger than the views need. cvexp has them in memory, as in all epochs but the first. Further arguments
are overrides for cvexp. Those of the data, the backbone and the views apply to all contenders, others only to cvexp.

The contenders take turns, after a round that is not counted, and each round starts with another of them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

import cvexp
from cvexp import data
from cvexp.data import kept
from cvexp.data.index import Splits
from cvexp.models.backbone import create_backbone, feature_dim
from cvexp.tasks.dino import DINO
from cvexp.tracking.opening import open_run
from cvexp.training.fit import fit
from cvexp.training.speed import bare_step

SETTINGS = {
    "course": ["task.global_size=192", "task.local_size=72", "loader.batch_size=16"],
    "default": ["task.global_size=96", "task.local_size=48", "loader.batch_size=64"],
    "small": ["+experiment=demo"],
}
SHAPES = ["dataset=shapes", "dataset.val_images=12"]
VOC = ["dataset=voc", "dataset.classes=[person,cat,cow,dog,horse,sheep]", "dataset.min_crop_size=40"]
QUICK = ["task.knn_bank=12", "task.embed_every_n_epochs=1000", "trainer.accelerator=cpu"]
VAL_CROPS = 12
WARMUP_STEPS = 2  # are not counted
FIT_STEPS = 12  # least number of steps of fit: the loader has prepared the first few while the networks warmed up
MOMENTUM = 0.99  # of the teachers of plain and lightly
PACKAGES = ("torch", "torchvision", "timm", "lightly", "pytorch-lightning", "pillow")


def train(loader: Iterable[Any], step: Callable[[list[Tensor]], object], seconds: float) -> float:
    """Train for some time, and return the images per second after the first steps, which are slower."""
    batches = iter(loader)
    durations: list[float] = []
    num_images, ready = 0, time.perf_counter()
    while len(durations) <= WARMUP_STEPS or sum(durations) < seconds:
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            continue
        step(batch[0])
        num_images = len(batch[1])
        durations.append(time.perf_counter() - ready)
        ready += durations[-1]
    return num_images / statistics.mean(durations[WARMUP_STEPS:])


class TimedDINO(DINO):
    """Remembers how long each step of the training took, with all that came before it in its epoch."""

    def on_train_start(self) -> None:
        self.durations: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.ready = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.durations.append(time.perf_counter() - self.ready)
        self.ready += self.durations[-1]


class PlainDINO(nn.Module):
    """Backbone and head. It maps views to logits (views * images, prototypes)."""

    def __init__(self, backbone: nn.Module, num_features: int, task: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (num_features, task.hidden_dim):
            norm = [nn.BatchNorm1d(task.hidden_dim)] if task.batch_norm else []
            layers += [nn.Linear(width, task.hidden_dim), *norm, nn.GELU()]
        self.backbone = backbone
        self.head = nn.Sequential(*layers, nn.Linear(task.hidden_dim, task.bottleneck_dim))
        self.prototypes = nn.Parameter(torch.randn(task.out_dim, task.bottleneck_dim))

    def forward(self, views: list[Tensor]) -> Tensor:
        by_size = [torch.cat(list(group)) for _, group in itertools.groupby(views, lambda view: view.shape)]
        x = self.head(torch.cat([self.backbone(images) for images in by_size]))
        return F.linear(F.normalize(x), F.normalize(self.prototypes))


def plain(module: DINO, crops: Path, seconds: float) -> float:
    config, task, views = module.config, module.task, module.views()
    by_view = [plain_transform(view, config.dataset.mean, config.dataset.std) for view in views]
    images = ImageFolder(crops, lambda image: [transform(image) for transform in by_view])
    loader = DataLoader(images, config.loader.batch_size, shuffle=True, drop_last=True)
    backbone = create_backbone(config.backbone.name, **config.backbone.args)
    student = PlainDINO(backbone, feature_dim(backbone, task.eval_size), task)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), config.optimizer.lr, weight_decay=0.04)
    center = torch.zeros(task.out_dim)

    def step(views: list[Tensor]) -> None:
        with torch.no_grad():
            target = teacher(views[:2])
        p = F.softmax((target - center) / task.teacher_temperature, dim=-1).chunk(2)
        log_q = F.log_softmax(student(views) / task.student_temperature, dim=-1).chunk(len(views))
        pairs = [(t, v) for t in range(2) for v in range(len(views)) if v != t]
        loss = -torch.stack([(p[t] * log_q[v]).sum(-1).mean() for t, v in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.mul_(MOMENTUM).add_((1 - MOMENTUM) * new)
            center.mul_(task.center_momentum).add_((1 - task.center_momentum) * target.mean(0))

    return train(loader, step, seconds)


def plain_transform(view: Any, mean: list[float], std: list[float]) -> Any:
    blur = T.GaussianBlur(max(3, view.size // 10 | 1), (0.1, 2.0))  # as large as cvexp's
    return T.Compose(
        [
            T.RandomResizedCrop(view.size, tuple(view.scale), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(view.flip),
            T.RandomApply([T.ColorJitter(*view.jitter)], view.jitter_probability),
            T.RandomGrayscale(view.gray),
            T.RandomApply([blur], view.blur),
            T.RandomSolarize(128, view.solarize),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def lightly(module: DINO, crops: Path, seconds: float) -> float:
    config = module.config
    task: Any = module.task
    transform = DINOTransform(
        global_crop_size=task.global_size,
        global_crop_scale=tuple(task.global_scale),
        local_crop_size=module.local_size,
        local_crop_scale=tuple(task.local_scale),
        n_local_views=task.local_crops,
        hf_prob=task.flip,
        cj_prob=task.jitter_probability,
        cj_strength=1.0,
        **dict(zip(("cj_bright", "cj_contrast", "cj_sat", "cj_hue"), task.jitter, strict=True)),
        random_gray_scale=task.gray,
        gaussian_blur=tuple(task.blur),
        solarization_prob=task.solarize[1],
        normalize={"mean": config.dataset.mean, "std": config.dataset.std},
    )
    images, workers = LightlyDataset(str(crops), transform), config.loader.num_workers
    loader: DataLoader[Any] = DataLoader(
        images, config.loader.batch_size, True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    backbone = create_backbone(config.backbone.name, **config.backbone.args)
    num_features = feature_dim(backbone, task.eval_size)
    sizes = (num_features, task.hidden_dim, task.bottleneck_dim, task.out_dim, task.batch_norm)
    student = nn.Sequential(backbone, DINOProjectionHead(*sizes))
    teacher = nn.Sequential(copy.deepcopy(backbone), DINOProjectionHead(*sizes))
    deactivate_requires_grad(teacher)
    criterion = DINOLoss(task.out_dim)
    optimizer = torch.optim.AdamW(student.parameters(), config.optimizer.lr, weight_decay=0.04)

    def step(views: list[Tensor]) -> None:
        update_momentum(student, teacher, MOMENTUM)
        loss = criterion([teacher(view) for view in views[:2]], [student(view) for view in views], epoch=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train(loader, step, seconds)


class Cvexp:
    """Runs of cvexp, which share their images. The training crops are also written as PNG files to a folder."""

    def __init__(self, overrides: list[str], crops: Path) -> None:
        self.overrides = overrides
        config = cvexp.compose(*overrides)
        train, val = data.load(config.dataset, "pretraining")
        self.splits = Splits(train, replace(val, **{k: getattr(val, k)[:VAL_CROPS] for k in ("image", "label", "box")}))
        self.module = DINO(config, self.splits)
        self.images = kept.keep(self.module.sources(), config.dataset.keep, torch.device("cpu"))
        for position, label in enumerate(train.label.tolist()):
            path = crops / str(label) / f"{position}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.images[0].image(position)).save(path)  # a first read also keeps the image

    def fit(self, num_steps: int) -> float:
        config = cvexp.compose(*self.overrides, f"trainer.max_steps={num_steps}", f"trainer.max_epochs={num_steps}")
        with open_run(config, Path(tempfile.mkdtemp(dir=config.tracking.folder))) as run:
            self.module = module = TimedDINO(config, self.splits, run)
            self.module.images = self.images
            with contextlib.redirect_stdout(io.StringIO()):
                fit(self.module, run, monitor="val/loss")
        return module.batches.batch_size / statistics.mean(module.durations[WARMUP_STEPS:])

    def step(self, seconds: float) -> float:
        module = self.module.train()  # of the last run
        batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
        return train([batch], lambda _: bare_step(module.trainer, module, batch), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--root", type=Path, help="a folder of PASCAL VOC, whose crops are used instead of shapes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each contender and round")
    parser.add_argument("overrides", nargs="*", help="for cvexp, such as trainer.precision=bf16-mixed")
    args = parser.parse_intermixed_args()
    images = [*VOC, f"dataset.root={args.root.resolve()}"] if args.root else SHAPES
    os.environ["CVEXP_START"] = "speed"
    with tempfile.TemporaryDirectory() as folder:
        crops = Path(folder) / "crops"
        overrides = [*SETTINGS[args.setting], *images, *QUICK, f"tracking.folder={folder}", *args.overrides]
        ours, num_steps = Cvexp(overrides, crops), 3  # steps of the first run, to warm up
        contenders: dict[str, Callable[[], float]] = {
            "fit": lambda: ours.fit(num_steps),
            "step": lambda: ours.step(args.seconds),
            "plain": lambda: plain(ours.module, crops, args.seconds),
            "lightly": lambda: lightly(ours.module, crops, args.seconds),
        }
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(args.rounds + 1):
            first = number % len(contenders)
            for name in [*contenders, *contenders][first : first + len(contenders)]:
                torch.use_deterministic_algorithms(name in ("fit", "step"), warn_only=True)
                speeds[name].append(contenders[name]())
                print(f"round {number}: {name} {speeds[name][-1]:.1f} images/s", flush=True)
            if number == 0:
                num_steps = max(FIT_STEPS, round(args.seconds * speeds["step"][0] / ours.module.batches.batch_size))
    report(vars(args), {name: values[1:] for name, values in speeds.items()})


def report(settings: dict[str, Any], speeds: dict[str, list[float]]) -> None:
    """Print a table of the speeds and their ratios, and the same figures as a line of JSON."""
    rows = {f"{name} (images/s)": values for name, values in speeds.items()}
    for other in ("plain", "lightly", "step"):
        rows[f"fit / {other}"] = [ours / theirs for ours, theirs in zip(speeds["fit"], speeds[other], strict=True)]
    figures = {}
    for name, values in rows.items():
        figures[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        print(f"{name:20}{figures[name]['median']:10.2f}   ({min(values):.2f} to {max(values):.2f})")
    machine = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), **{p: version(p) for p in PACKAGES}}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(json.dumps({**settings, "figures": figures, **machine}, default=str))


if __name__ == "__main__":
    main()
