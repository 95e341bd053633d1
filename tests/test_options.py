"""What is read from the YAML files, and the reference that is generated from it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cvexp import options
from cvexp.composition import compose_yaml
from website import reference

HYDRA = ("hydra/launcher", "hydra/sweeper")
OPTIONS = [(group, name) for group in options.GROUPS for name in options.names(group)]


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_the_keys_of_an_option_are_those_that_hydra_composes(group: str, name: str) -> None:
    composed = OmegaConf.to_container(compose_yaml([f"{group}={name}"])[group])
    settings = options.resolved(group, name)
    assert {key: each.value for key, each in settings.items() if "." not in key} == composed


def test_each_option_and_each_key_is_explained() -> None:
    unexplained = []
    for group, name in [*OPTIONS, *((folder, name) for folder in HYDRA for name in options.names(folder))]:
        if not options.read(f"{group}/{name}").about:
            unexplained.append(f"{group}={name}")
        for key, each in options.resolved(group, name).items():
            if (
                not each.comment
                and not key.startswith(("args.", "_target_"))
                and (group, key)
                not in (
                    ("task", "name"),
                    ("dataset", "name"),
                )
            ):
                unexplained.append(f"{group}={name}: {key}")
    top = [each for each in options.read("config").settings if not each.key.startswith(("hydra", "loader"))]
    unexplained += [each.key for each in top if not each.comment]
    assert not unexplained
    assert set(options.group_comments()) == set(options.GROUPS)


def test_comments_titles_and_values(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("# Shared.\n\n# Above.\nfirst: 1 # behind it\nsecond: [a, b] # of the base\n")
    (tmp_path / "own.yaml").write_text(
        "# @package _global_\n# One line\n# and another.\n#\n# A paragraph.\n"
        "defaults:\n  - base\n  - override /task: dino\n  - _self_\n\n"
        "## A title\n# Above\n# it. null: no value,\nthird: null # or one with 'a # sign'\n"
        "second:\n  - a#b # an item\n  - c\n\n"
        "fourth: # a dictionary\n  # inside\n  key: 1e-3\n"
    )
    option = options.read("own", [tmp_path])
    assert (option.name, option.about, option.bases) == ("own", ["One line and another.", "A paragraph."], ["base"])
    assert [(each.key, each.text, each.comment, each.title) for each in option.settings] == [
        ("third", "null", "Above it. null: no value, Or one with 'a # sign'", "A title"),
        ("second", "[a#b, c]", "", "A title"),
        ("fourth", "{key: 1e-3}", "a dictionary", "A title"),
        ("fourth.key", "1e-3", "inside", "A title"),
    ]
    assert [each.value for each in option.settings] == [None, ["a#b", "c"], {"key": 0.001}, 0.001]
    settings = options.resolved("", "own", [tmp_path])
    assert list(settings) == ["first", "second", "third", "fourth", "fourth.key"]
    assert (settings["first"].comment, settings["second"].comment) == ("Above. Behind it", "of the base")
    assert settings["second"].text == "[a#b, c]"


def test_the_reference_is_current() -> None:
    assert reference.PAGE.read_text() == reference.write(), "run make reference"


def test_the_reference_has_each_key() -> None:
    page = reference.write()
    keys = {f"{group}.{key}" for group, name in OPTIONS for key in options.resolved(group, name) if "." not in key}
    assert not [key for key in keys - {"task.name", "dataset.name"} if f"| `{key}` |" not in page]
    assert "auto`, `none`, `ram` or `device` | `auto` | Where decoded images are kept" in page
    assert "whole number, at least 1 (images), or `null` | `null` | maximum number of images per split" in page


def test_text_is_escaped() -> None:
    assert reference._text("a|b *c* `d|*` <e> docs/f.md https://g.org/h.") == (
        r"a\|b \*c\* `d\|*` &lt;e> [f.md](f.md) <https://g.org/h>."
    )


def test_an_experiment_in_a_folder_of_its_own_may_use_another_one(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - demo\n  - _self_\n\nseed: 7\n"
    )
    place = f"hydra.searchpath=[file://{tmp_path}]"
    composed = compose_yaml([place, "+experiment=own"])
    assert (composed.seed, composed.task.out_dim, composed.backbone.name) == (7, 512, "resnet_mini")
    assert compose_yaml([place, "+experiment=[own,demo_simclr]"]).task.name == "simclr"
