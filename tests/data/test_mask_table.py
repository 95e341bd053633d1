"""What the values of masks stand for: numbers and colors, with and without a background, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvexp.data import load
from cvexp.data.files.images import read_mask
from cvexp.data.mask_table import MaskTable, parse_table
from cvexp.errors import UserError
from tests.helpers import dataset, save_image

ROAD, SKY = (128, 64, 128), (70, 130, 180)
SPLITS = {"train_masks": "train", "val_masks": "val", "min_crop_size": 8}


def bands(*values: Any, mode: str = "L") -> Image.Image:
    """An image of 48 x 40 px with a band for each value, which is a number or a color."""
    rows = np.repeat(np.array(values, dtype=np.uint8), 40 // len(values), axis=0)
    image = Image.fromarray(np.repeat(rows[:, None], 48, axis=1))
    if mode == "P":
        image.putpalette([part for i in range(256) for part in (i, 255 - i, 7)])
    return image


def noise() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 48, 3), dtype=np.uint8))


def save(root: Path, mask: Image.Image, file: str = "a.png", split: str | None = None) -> Path:
    for name in ("train", "val") if split is None else (split,):
        save_image(root / name / f"{Path(file).stem}.jpg")
        mask.save(root / name / file)
    return root


def label_column(root: Path, **keys: object) -> list[int]:
    """The label of each band of the training mask; the classes are those of `mask_values`, in their order."""
    labels = load(dataset("folder", root, **{**SPLITS, **keys}), "segmentation").train.label_map(0)
    assert (labels == labels[:, :1]).all()
    return [int(value) for value in labels[5::10, 0]]


def test_by_default_0_is_background_and_255_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, bands(0, 4, 255, 9))
    assert label_column(tmp_path, mask_values={"lake": 9, "road": 4}) == [0, 2, 255, 1]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_without_background_0_may_be_a_class(tmp_path: Path, mode: str) -> None:
    save(tmp_path, bands(0, 1, 11, 0, mode=mode))
    keys = {"mask_values": {"sky": 0, "road": 1}, "background_value": None, "ignore_value": 11}
    assert label_column(tmp_path, **keys) == [1, 2, 255, 1]


def test_any_value_may_be_the_background_and_none_may_be_ignored(tmp_path: Path) -> None:
    save(tmp_path, bands(0, 255, 7, 7))
    keys = {"mask_values": {"sky": 0, "building": 255}, "background_value": 7, "ignore_value": None}
    assert label_column(tmp_path, **keys) == [1, 2, 0, 0]


@pytest.mark.parametrize(("word", "others"), [("background_value", 0), ("ignore_value", 255)])
@pytest.mark.parametrize("is_colored", [False, True])
def test_all_values_that_are_not_listed_may_have_one_meaning(
    tmp_path: Path, word: str, others: int, is_colored: bool
) -> None:
    values = [(i, 9, 9) for i in (3, 1, 8, 2)] if is_colored else [3, 1, 8, 2]
    save(tmp_path, bands(*values))
    named = {"road": values[1], "sky": values[3]}
    assert label_column(tmp_path, mask_values=named, **{word: "others"}) == [others, 1, others, 2]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_classes_may_have_colors(tmp_path: Path, mode: str) -> None:
    mask = bands(ROAD, (0, 0, 0), (255, 255, 255), SKY)
    save(tmp_path, mask.quantize(8) if mode == "P" else mask.convert(mode))
    assert label_column(tmp_path, mask_values={"sky": "#4682b4", "road": list(ROAD)}) == [2, 0, 255, 1]


def test_among_colors_a_number_is_a_gray(tmp_path: Path) -> None:
    save(tmp_path, bands(ROAD, (9, 9, 9), (8, 8, 8), SKY))
    keys = {"mask_values": {"road": list(ROAD), "sky": list(SKY)}, "background_value": 9, "ignore_value": 8}
    assert label_column(tmp_path, **keys) == [1, 0, 255, 2]


def test_gray_masks_that_were_saved_as_rgb_have_numbers(tmp_path: Path) -> None:
    save(tmp_path, bands(0, 1, 2, 1).convert("RGB"))
    assert label_column(tmp_path, mask_values={"a": 1, "b": 2}) == [0, 1, 2, 1]


def test_colors_are_translated_like_by_a_dictionary() -> None:
    random = np.random.RandomState(0)
    colors = random.randint(0, 2**24, 40)
    table = MaskTable(tuple(colors[:30].tolist()), int(colors[30]), None, "ignore", has_colors=True)
    values = random.choice(colors, (50, 60)).astype(np.uint32)
    expected = {int(color): i + 1 for i, color in enumerate(colors[:30])} | {int(colors[30]): 0}
    labels = table.labels(values, np.arange(1, 31), 0, 255)
    assert labels.tolist() == [[expected.get(value, 255) for value in row] for row in values.tolist()]
    assert table.num_ignored(values) == (labels == 255).sum() > 0


@pytest.mark.parametrize(
    ("values", "background", "ignored", "words"),
    [
        ({"sky": 0}, 0, 255, r"0 is the value of sky, and also dataset\.background_value.*background_value=null"),
        ({"house": 255}, 0, 255, r"255 is the value of house, and also dataset\.ignore_value.*ignore_value=null"),
        ({"x": "#FFFFFF"}, 0, 255, r"#FFFFFF is the value of x, and also dataset\.ignore_value"),
        ({"x": 1}, 0, 0, r"0 is also dataset\.background_value.*dataset\.background_value=null"),
        ({"x": 1, "y": 1}, 0, 255, "x and y have the same value, 1"),
        ({"x": "#000080", "y": [0, 0, 128]}, 0, 255, "x and y have the same value"),
        ({"x": 65536}, 0, 255, r"mask_values\.x: got 65536, but it must be a number from 0 to 65535, or a color"),
        ({"x": -1}, 0, 255, r"mask_values\.x: got -1"),
        ({"x": "red"}, 0, 255, r"mask_values\.x: got 'red'"),
        ({"x": "804080"}, 0, 255, r"mask_values\.x: got '804080'"),
        ({"x": [1, 2]}, 0, 255, r"mask_values\.x: got \[1, 2\]"),
        ({"x": [1, 2, 256]}, 0, 255, r"mask_values\.x: got \[1, 2, 256\]"),
        ({"x": True}, 0, 255, r"mask_values\.x: got True"),
        ({"x": 1.0}, 0, 255, r"mask_values\.x: got 1\.0"),
        ({"x": "#804080", "y": 3}, 0, 255, r"mask_values\.y: got 3, but other classes have colors"),
        ({"x": 1}, "#000000", 255, r"background_value: got '#000000', but dataset\.mask_values has numbers"),
        ({"x": 1}, 0, "void", r"ignore_value: got 'void'"),
        ({"x": "#804080"}, 0, 256, r"ignore_value: got 256"),
        ({"x": 1}, "others", "others", "ignore_value: got others, like"),
    ],
)
def test_values_that_do_not_fit_are_named(
    values: dict[str, object], background: object, ignored: object, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        parse_table(values, background, ignored)


def test_a_class_called_background_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leave it out, and set dataset\.background_value=7"):
        dataset("folder", tmp_path, mask_values={"background": 7, "x": 1})


def test_numbers_and_colors_are_told_apart(tmp_path: Path) -> None:
    save(tmp_path / "colors", bands(ROAD, SKY))
    with pytest.raises(UserError, match=r"this one has colors, such as #804080; .* in dataset\.mask_values"):
        label_column(tmp_path / "colors", mask_values={"x": 1})
    save(tmp_path / "gray", bands(0, 3, 5, 3))
    with pytest.raises(UserError, match=r"have the gray 3, but dataset\.mask_values lists colors; for gray masks"):
        label_column(tmp_path / "gray", mask_values={"x": "#804080"})


def test_masks_that_are_neither_name_their_mode(tmp_path: Path) -> None:
    bands(0, 1).convert("LA").save(tmp_path / "la.png")
    half = bands(ROAD, SKY).convert("RGBA")
    half.putalpha(100)
    half.save(tmp_path / "half.png")
    Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(tmp_path / "deep.png")
    for name, has_colors, words in (
        ("la.png", False, "mode LA"),
        ("half.png", False, "mode RGBA"),
        ("half.png", True, "transparent pixels"),
        ("deep.png", True, "mode I;16"),
    ):
        with pytest.raises(UserError, match=words):
            read_mask(tmp_path / name, has_colors)


def test_unknown_values_come_with_a_remedy(tmp_path: Path) -> None:
    save(tmp_path / "colors", bands(ROAD, SKY))
    with pytest.raises(UserError, match=r"have the color #4682B4, which is neither a class nor #000000 \(background\)"):
        label_column(tmp_path / "colors", mask_values={"road": "#804080"})
    keys = {"mask_values": {"road": "#804080"}, "background_value": None, "ignore_value": None}
    with pytest.raises(UserError, match=r"#4682B4, which is no class; .*dataset\.ignore_value=others"):
        label_column(tmp_path / "colors", **keys)
    mixed = save(tmp_path / "mixed", noise())
    with pytest.raises(UserError, match=r"the mask has \d\d+ colors that stand for nothing.* JPEG and smooth"):
        label_column(mixed, mask_values={"x": "#FF0000"})


def has_background(**keys: object) -> bool:
    return bool(dataset("folder", "x", train_masks="train", val_masks="val", **keys).has_background)


def test_there_is_a_background_if_pixels_may_belong_to_no_chosen_class() -> None:
    values = {"mask_values": {"sky": 0, "road": 1}, "background_value": None}
    assert has_background(mask_values={"road": 1})
    assert not has_background(**values)
    assert not has_background(**values, classes=["road", "sky"])
    assert has_background(**values, classes=["road"])
    assert not has_background(**values, classes=["road"], unlisted="ignore")
    assert has_background(**{**values, "background_value": "others"})
    assert not has_background(**values, ignore_value="others")
    assert dataset("voc", "x").has_background


def test_tables_that_differ_have_other_fingerprints(tmp_path: Path) -> None:
    save(tmp_path, bands(1, 2, 1, 2))
    values: dict[str, object] = {"mask_values": {"a": 1, "b": 2}}
    tables: list[dict[str, object]] = [
        values,
        {**values, "background_value": None},
        {**values, "background_value": 3},
        {**values, "ignore_value": None},
        {**values, "ignore_value": "others"},
        {"mask_values": {"a": 2, "b": 1}},
        {"mask_values": {"b": 2, "a": 1}},
    ]
    indexes = [load(dataset("folder", tmp_path, **SPLITS, **keys), "segmentation").val for keys in tables]
    assert len({index.fingerprint() for index in indexes}) == len(tables)


def test_without_values_those_of_the_masks_are_listed_with_settings_to_paste(tmp_path: Path) -> None:
    save(tmp_path / "gray", bands(0, 3, 5, 255))
    save(tmp_path / "sky", bands(1, 2, 2, 2, mode="P"))
    save(tmp_path / "colors", bands(ROAD, SKY, SKY, (0, 0, 0)))
    save(tmp_path / "photo", noise())
    for name, words in (
        (
            "gray",
            r"2 masks, .* have these numbers .*: 0 \(25\.0%\), 3 \(25\.0%\), 5 .*'dataset\.mask_values={class_1: 3, "
            r"class_2: 5}'; 0 is the background unless .*; 255 is ignored unless you name it and set dataset\.ignore_",
        ),
        (
            "sky",
            r"1 #01FE07 \(25\.0%\), 2 .*'dataset\.mask_values={class_1: 1, class_2: 2}' dataset\.background_value=",
        ),
        ("colors", r"these colors .*: #4682B4 \(50\.0%\), .*{class_1: \"#4682B4\", class_2: \"#804080\"}'; #000000 is"),
        ("photo", r"colors, which are too many for classes"),
    ):
        with pytest.raises(UserError, match=words) as told:
            label_column(tmp_path / name)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("image", "mask", "keys"),
    [
        ("{}.jpg", "{}_L.png", {"mask_suffix": "_L.png"}),
        ("{}_image.png", "{}_mask.png", {"image_suffix": "_image.png", "mask_suffix": "_mask.png"}),
        ("town/{}_leftImg8bit.png", "town/{}_gtFine_labelIds.png",
         {"image_suffix": "_leftImg8bit.png", "mask_suffix": "_gtFine_labelIds.png"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("masks", ["{}", "masks/{}"])
def test_names_may_differ_in_their_endings(
    tmp_path: Path, image: str, mask: str, keys: dict[str, object], masks: str
) -> None:
    for split in ("train", "val"):
        keys = {**keys, f"{split}_masks": masks.format(split)}
        for name in "ab":
            save_image(tmp_path / split / image.format(name))
            path = tmp_path / masks.format(split) / mask.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            bands(0, 1).save(path)
    index = load(dataset("folder", tmp_path, mask_values={"x": 1}, **keys), "segmentation").train
    assert [index.catalog.file(i) for i in index.images] == [f"train/{image.format(name)}" for name in "ab"]
    assert index.label_map(0).max() == 1


def test_a_missing_suffix_is_suggested(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / split / "a [1].jpg")
        bands(0, 1).save(tmp_path / split / "a [1]_L.png")
    keys = {**SPLITS, "mask_values": {"x": 1}}
    with pytest.raises(UserError, match=r"but there is a \[1\]_L\.png, so set dataset\.mask_suffix=_L\.png"):
        load(dataset("folder", tmp_path, **keys), "segmentation")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="a mask has its image's name"):
        load(dataset("folder", tmp_path, **{**keys, "train_masks": "elsewhere"}), "segmentation")
