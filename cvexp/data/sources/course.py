"""The data of the course "Computer Vision, assignment 1" (Freiburg, 2022): unlabeled crops, and images with masks.

Pretraining uses the crops, and segmentation uses the images with masks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import is_zipfile

from filelock import FileLock
from omegaconf import MISSING
from PIL import Image

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Draft
from cvexp.data.files.annotations import add_object, check_image, explain_entry, read_json
from cvexp.data.files.archive import unpack
from cvexp.data.files.fetch import Remote, fetch_with_bar, lock_folder
from cvexp.data.files.images import FORMATS, explain, leaves_folder, upright_size
from cvexp.data.prepare import Recipe, Recipes, Use
from cvexp.data.sources.folder import list_images, tree_recipe
from cvexp.errors import UserError, opening

CATEGORIES = {"1": "person", "2": "bicycle", "3": "car", "17": "cat", "18": "dog"}
ARCHIVES: dict[Use, str] = {"pretraining": "unlabelled_dataset.zip", "segmentation": "segmentation_dataset.zip"}
UNPACKED: dict[Use, str] = {"pretraining": "crops/images/256", "segmentation": "COCO_mini5class_medium"}


@dataclass(kw_only=True)
class Config(DatasetConfig):
    password: str | None = MISSING
    download: bool = MISSING
    url: str = MISSING


def uses(config: Config) -> tuple[Use, ...]:
    """Return the possible uses of the data that exists or can be fetched."""
    root = Path(config.root)
    available: tuple[Use, ...] = tuple(
        use for use in ARCHIVES if (root / ARCHIVES[use]).exists() or (root / UNPACKED[use]).exists()
    )
    return available if available and not config.download else tuple(ARCHIVES)


def recipes(config: Config, use: Use) -> Recipes:
    """Return the recipes of the splits. Fetch and unpack the archive first if necessary.

    Raises:
        UserError: if the archive is missing or damaged, or the password is wrong.
    """
    root = _unpacked_folder(config, use).absolute()
    folder = UNPACKED[use]
    if use == "pretraining":
        train, val = (list_images(root, f"{folder}/{split}", "dataset.root") for split in ("train", "val"))
        return Recipes(tree_recipe(root, train, f"{folder}/train"), tree_recipe(root, val, f"{folder}/val"))
    paths = [root / folder / f"aggregated_annotations_{split}_5classes.json" for split in ("train", "val")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; check dataset.root=, or fetch the archive again")
    train_recipe, val_recipe = (
        Recipe(
            [str(root), images],
            [path, *sorted((root / folder / "imgs" / images).glob("*"))],
            partial(_read_aggregated, root, path, f"{folder}/imgs/{images}"),
        )
        for path, images in zip(paths, ("train2014", "val2014"), strict=True)
    )
    return Recipes(train_recipe, val_recipe)


def _unpacked_folder(config: Config, use: Use) -> Path:
    """Return the folder with the content of an archive. Fetch and unpack the archive first if necessary."""
    root, name = Path(config.root), ARCHIVES[use]
    if (root / UNPACKED[use]).is_dir():
        return root
    archive = root / name
    if not archive.exists():
        if not config.download:
            raise UserError(
                f"dataset.root: there is neither {archive} nor {root / UNPACKED[use]}; give the folder that contains "
                f"{name}, or fetch the archive with dataset.download=true"
            )
        with lock_folder(root):
            fetch_with_bar(Remote(f"{config.url}/{name}", archive, verify=is_zipfile))
    state = archive.stat()
    digest = hashlib.sha256(f"{archive.absolute()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    folder = Path(config.cache) / f"course-{archive.stem}-{digest[:16]}"
    with opening("dataset.cache"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"course-{archive.stem}.lock"):
            if not folder.exists():
                unpack(archive, folder, password=config.password)
    if not (folder / UNPACKED[use]).is_dir():
        raise UserError(f"{archive}: there is no {UNPACKED[use]} in this archive; check dataset.root=")
    return folder


def _read_aggregated(root: Path, path: Path, images: str) -> Draft:
    """Read an aggregated annotation file: a list of images, each with its objects by COCO category.

    Args:
        root: The folder that `images` is relative to.
        path: The annotation file.
        images: The folder of the images.

    Raises:
        UserError: if the file as a whole is invalid. An invalid entry is recorded as a problem in the draft.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: this is not a list of images with their annotations; fetch the archive again")
    draft = Draft(root, list(CATEGORIES.values()))
    label_of = {category: label for label, category in enumerate(CATEGORIES)}
    for number, entry in enumerate(entries):
        where = f"{path}: [{number}]"
        try:
            file, width, height = check_image(_with_size(entry, root / images))
            image = draft.add_image(f"{images}/{file}", width, height)
            groups = [(label_of[key], list(objects)) for key, objects in entry["annotations"].items()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            draft.add_problem(where, explain_entry(error))
            continue
        for label, objects in groups:
            for annotation in objects:
                try:
                    # In the course's files, only crowd regions have run lengths.
                    crowd = annotation.get("iscrowd", int(isinstance(annotation["segmentation"], dict)))
                    add_object(draft, image, label, {**annotation, "iscrowd": crowd})
                except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                    draft.add_problem(where, explain_entry(error))
    return draft


def _with_size(entry: dict[str, object], images: Path) -> dict[str, object]:
    """Return an entry with width and height, read from its image if the annotation file lacks them."""
    file = entry["file_name"]
    if "width" in entry or not isinstance(file, str) or leaves_folder(file):
        return entry
    try:
        with Image.open(images / file, formats=FORMATS) as image:
            width, height = upright_size(image)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {images / file}") from error
    except Exception as error:  # Pillow may raise anything for a broken file
        raise ValueError(f"{images / file}: {explain(error)}") from error
    return {**entry, "width": width, "height": height}
