"""The documentation: links, settings and commands in the pages, and the site that is built from them."""

from pathlib import Path

import pytest

from website import build, check, pages

PAGE = Path("docs/page.md")
TAGS = {"list_item_open": "<li>", "table_open": "<table>", "heading_open": 'class="headerlink"'}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository."""
    for name in (*pages.OUTSIDE, PAGE, Path("docs/other.md"), Path("experiments/a.md")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# Title\n\n## A `code=1`, and more\n")
    (tmp_path / pages.INDEX).write_text(
        "# Index\n\n[not listed](other.md)\n\n## First\n\n* [A page](page.md): about\n* [A](../experiments/a.md)\n\n"
        "## Second\n\n* [How](../CONTRIBUTING.md)\n* [What](../CHANGELOG.md)\n"
    )
    return tmp_path


def test_pages_are_grouped_as_the_index_says(root: Path) -> None:
    assert pages.nav(root) == {
        "First": {"A page": PAGE, "A": Path("experiments/a.md")},
        "Second": {"How": Path("CONTRIBUTING.md"), "What": Path("CHANGELOG.md")},
    }


def test_a_page_that_is_not_listed_is_noticed(root: Path) -> None:
    assert check.unlisted(root) == ["docs/other.md: not listed in docs/index.md; add a line: * [TITLE](PAGE)"]
    index = root / pages.INDEX
    index.write_text(index.read_text() + "* [Other](other.md)\n* [Again](page.md)\n")
    assert check.unlisted(root) == ["docs/index.md: lists docs/page.md more than once"]


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("other.md", None),
        ("other.md#a-code1-and-more", None),
        ("#own-heading", None),
        ("../experiments", None),
        ("https://example.org/nothing", None),
        ("others.md", "there is no such file"),
        ("other.md#a-code", "there is no such heading"),
        ("#own", "there is no such heading"),
        ("../../elsewhere", "this is outside of the repository"),
    ],
)
def test_broken_links_are_noticed(root: Path, link: str, problem: str | None) -> None:
    for text in (f"[`text`]({link})", f"![picture]({link})"):
        found = list(check.broken_links(PAGE, f"# Own heading\n\nSome {text}.\n\n    [code](nowhere)\n", root))
        assert found == ([] if problem is None else [f"{link}: {problem}"])


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("`dataset.root=PATH`, `task.of=dino`, `optimizer.args.betas`, `task.class_weights.cat`", []),
        (
            "`config.task.name`, `loader.py`, `cvexp/tasks/dino.py`, `trainer.fit(module)`",
            [],
        ),
        ("`task=NAME`, `task=dino,simclr`, `+experiment=demo`, `hydra/launcher=basic`", []),
        ("`backbone=...`, `hydra.launcher.ray.init.num_cpus`", []),
        ("```console\n$ python -m cvexp optimizer.lrr=1\n```", []),
        ("`dataset.rooot=PATH`", ["dataset.rooot: there is no such key"]),
        ("In prose, dataset.image\\_sise is wrong.", ["dataset.image_sise: there is no such key"]),
        ("    python -m cvexp loader.batch=3", ["loader.batch: there is no such key"]),
        ("`hydra.sweeper.n_trial`", ["hydra.sweeper.n_trial: there is no such key"]),
        ("`optimizer.lr.x`", ["optimizer.lr.x: there is no such key"]),
        ("`task=dino,simclear`", ["task=simclear: there is no such option"]),
        ("`+experiment=demos`", ["+experiment=demos: there is no such option"]),
    ],
)
def test_settings_that_do_not_exist_are_noticed(text: str, problems: list[str]) -> None:
    assert list(check.unknown_settings(text)) == problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("    python -m cvexp task=study task.hours=2 'task.starts=[random]'  # says why", None),
        ("    python -m cvexp -m task=multiclass,attention \\\n        task.decoder_channels=64,128", None),
        (
            "    python -m cvexp -m +search=dino 'optimizer.lr=tag(log,interval(1e-4,1e-2))' hydra.sweeper.n_trials=3",
            None,
        ),
        ("    torchrun --nproc-per-node=2 -m cvexp trainer=ddp", None),
        ("`python -m cvexp dataset=coco ...`", None),
        ("```bash\npython -m cvexp seed=1\n```", None),
        ("`python -m cvexp dataset=coco`", "dataset.root: a value is needed"),
        ("    python -m cvexp task=multiclass task.global_size=3", "task.global_size: "),
        ("    python -m cvexp -m task=simclr,dino task.local_crops=3", "task.local_crops: "),
        ("    python -m cvexp 'seed=1", "No closing quotation"),
    ],
)
def test_commands_that_are_refused_are_noticed(text: str, problem: str | None) -> None:
    found = list(check.refused_commands(text))
    assert (problem in found[0]) if problem else not found


@pytest.mark.slow
def test_the_pages_are_right() -> None:
    assert not check.problems()


@pytest.mark.slow
def test_the_site_has_all_pages_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    build.build(tmp_path)
    site = tmp_path / "site"
    assert not build.broken(site)
    for page, place in pages.pages().items():
        built = (site / place).with_suffix(".html").read_text()
        article = built[built.index("<article") : built.index("</article>")]
        kinds = [token.type for token in pages.tokens((pages.ROOT / page).read_text())]
        for kind, tag in (
            ("list_item_open", "<li>"),
            ("table_open", "<table>"),
            ("heading_open", 'class="headerlink"'),
        ):
            assert article.count(tag) == kinds.count(kind), (page, tag)  # as on a forge
    (site / "index.html").write_text(
        '<a href="runs.html#x"></a><a href="no.html"></a><script src="//cdn.org/a.js"></script>'
    )
    assert build.broken(site) == [
        "index.html: runs.html#x: there is no such anchor",
        "index.html: no.html: there is no such file",
        "index.html: loads //cdn.org/a.js",
    ]
