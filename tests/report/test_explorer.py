"""The embedding explorer in a real browser."""

import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from cvexp.metrics.neighbors import nearest_neighbors
from cvexp.report.embedding import Embedding
from cvexp.report.explorer import Words, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DOUBLE_CLICK = 400  # milliseconds; Bokeh takes two clicks within 300 for one gesture
COUNT, EPOCHS = 60, (0, 2, 4)
HOSTILE = "</script><script>document.title='bad'</script>"


def embeddings(count: int = COUNT) -> dict[int, Embedding]:
    random = np.random.default_rng(0)
    labels = (np.arange(count) % 3).astype(np.int16)
    found = {}
    for epoch in EPOCHS:
        features = random.normal(size=(count, 16)).astype(np.float32)
        layout = random.normal(size=(count, 2)).astype(np.float32) * 30
        names = np.array([f"val/{i}{HOSTILE}.jpg" for i in range(count)])
        found[epoch] = Embedding(features, labels, names, np.zeros((count, 4), np.float32), layout)
    return found


def colored(i: int) -> Image.Image:
    return Image.new("RGB", (30, 30), (4 * i, 255 - 4 * i, 80))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page from a file; any request to a network and any error fails the test."""
    html = page(embeddings(), [colored(i) for i in range(COUNT)], ["cat", f"dog{HOSTILE}", "cow"])
    (tmp_path / "explorer.html").write_text(html)
    wrong: list[str] = []

    def check_request(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            wrong.append(request.url)

    def check_message(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(message.text)

    tab = browser.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    tab.on("request", check_request)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", check_message)
    tab.goto((tmp_path / "explorer.html").as_uri())
    tab.wait_for_selector("body[data-ready]")
    yield tab
    assert tab.title() == "Embedding explorer"
    tab.close()
    assert wrong == []


def points(tab: Page) -> tuple[np.ndarray, np.ndarray]:
    script = "() => { const d = Bokeh.documents[0].get_model_by_name('points').data; return [[...d.x], [...d.y]]; }"
    x, y = tab.evaluate(script)
    return np.array(x), np.array(y)


def loneliest(tab: Page, among: Iterable[int] = range(COUNT)) -> int:
    """The point that has most room around it, so that a click meets no other."""
    x, y = points(tab)
    return max(among, key=lambda i: float(np.sort(np.hypot(x - x[i], y - y[i]))[1]))


def on_screen(tab: Page, i: int) -> tuple[float, float]:
    """Where a point is drawn."""
    script = """i => {
        const plot = Bokeh.documents[0].get_model_by_name("plot"), view = Bokeh.index.get_by_id(plot.id);
        const {x, y} = Bokeh.documents[0].get_model_by_name("points").data, box = view.el.getBoundingClientRect();
        return [box.left + view.frame.x_scale.compute(x[i]), box.top + view.frame.y_scale.compute(y[i])];
    }"""
    x, y = tab.evaluate(script, i)
    return x, y


def found(tab: Page) -> list[int]:
    buttons = tab.locator("#neighbors button")
    return [int(buttons.nth(i).get_attribute("data-crop") or -1) for i in range(buttons.count())]


def expected(epoch: int, crop: int) -> list[int]:
    features = embeddings()[epoch].features
    neighbors: list[int] = nearest_neighbors(features, features[[crop]], 8, np.array([crop])).indices[0].tolist()
    return neighbors


def test_the_slider_goes_through_the_epochs(shown: Page) -> None:
    assert shown.locator("#state").text_content() == "after epoch 4"
    last = points(shown)
    shown.locator("#epoch").press("ArrowLeft")
    shown.locator("#epoch").press("ArrowLeft")
    assert shown.locator("#state").text_content() == "untrained"
    first = points(shown)
    for epoch, (x, y) in ((4, last), (0, first)):
        layout = embeddings()[epoch].layout
        assert np.corrcoef(layout[:, 0], x)[0, 1] > 0.9999
        assert np.corrcoef(layout[:, 1], y)[0, 1] > 0.9999
        assert max(np.abs(x).max(), np.abs(y).max()) <= 1


def test_a_click_shows_the_nearest_neighbors_of_that_epoch(shown: Page) -> None:
    crop = loneliest(shown)
    shown.mouse.click(*on_screen(shown, crop))
    shown.wait_for_selector("#neighbors button")
    assert shown.locator("#number").input_value() == str(crop)
    assert found(shown) == expected(4, crop)
    shown.locator("#epoch").press("ArrowLeft")
    assert found(shown) == expected(2, crop)
    text = shown.locator("#neighbors button").first.text_content() or ""
    features = embeddings()[2].features
    distance = 1 - nearest_neighbors(features, features[[crop]], 1, np.array([crop])).cosines[0, 0]
    assert f"{distance:.3f}" in text
    shown.locator("#neighbors button").nth(2).click()
    assert found(shown) == expected(2, expected(2, crop)[2])


def test_a_typed_number_is_chosen_too(shown: Page) -> None:
    shown.locator("#number").fill("7")
    shown.locator("#number").press("Enter")
    assert found(shown) == expected(4, 7)
    assert "7, dog" in (shown.locator("#selected").text_content() or "")


def test_hovering_shows_the_crop(shown: Page) -> None:
    crop = loneliest(shown)
    shown.mouse.move(*on_screen(shown, crop))
    shown.get_by_text(f"{crop} {('cat', 'dog', 'cow')[crop % 3]}").wait_for()
    picture = shown.locator(".bk-Tooltip div[style*='--crops']")
    shot = Image.open(io.BytesIO(picture.screenshot())).convert("RGB")
    seen = np.array(shot)[30:60, 30:60].reshape(-1, 3).mean(axis=0)
    assert np.abs(seen - np.array(colored(crop).getpixel((0, 0)))).max() < 12  # what lossy compression may change
    assert shown.get_by_text(f"val/{crop}{HOSTILE}.jpg", exact=True).is_visible()


def test_a_class_can_be_hidden(shown: Page) -> None:
    first = loneliest(shown, among=range(0, COUNT, 3))
    second = loneliest(shown, among=[i for i in range(0, COUNT, 3) if i != first])
    shown.mouse.click(*on_screen(shown, first))
    shown.wait_for_selector("#neighbors button")
    shown.get_by_role("checkbox", name="cat").focus()
    shown.keyboard.press("Space")
    shown.wait_for_timeout(DOUBLE_CLICK)
    shown.mouse.click(*on_screen(shown, second))  # nothing is there any more, so that nothing is chosen
    shown.wait_for_selector("#neighbors button", state="detached")
    shown.get_by_role("checkbox", name="cat").check()
    shown.wait_for_timeout(DOUBLE_CLICK)
    shown.mouse.click(*on_screen(shown, first))
    shown.wait_for_selector("#neighbors button")
    assert found(shown) == expected(4, first)


def test_on_a_phone_nothing_sticks_out(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "e.html").write_text(page(embeddings(), [colored(i) for i in range(COUNT)], ["cat", "dog", "cow"]))
    tab = browser.new_page(viewport={"width": 360, "height": 740})
    tab.goto((tmp_path / "e.html").as_uri())
    tab.wait_for_selector("body[data-ready]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.close()


def test_a_page_of_a_single_epoch_has_no_slider(browser: Browser, tmp_path: Path) -> None:
    words = Words("image", "of 90 images", "the folders of the images", "Folders")
    html = page({0: embeddings()[0]}, [colored(i) for i in range(COUNT)], ["cat", "dog", "cow"], words)
    (tmp_path / "e.html").write_text(html)
    tab = browser.new_page()
    tab.goto((tmp_path / "e.html").as_uri())
    tab.wait_for_selector("body[data-ready]")
    assert not tab.locator("#epoch").is_visible()
    assert not tab.get_by_text("untrained").is_visible()
    assert tab.get_by_role("button", name="Reset view").is_visible()
    assert "t-SNE of the features of 60 of 90 images." in (tab.locator("p").text_content() or "")
    tab.get_by_label("Image number").fill("7")
    tab.get_by_label("Image number").press("Enter")
    assert (tab.locator("#selected").text_content() or "") == f"Image 7, dog, from val/7{HOSTILE}.jpg"
    nearest = tab.locator("#neighbors button").first
    assert nearest.get_attribute("title") == f"val/{expected(0, 7)[0]}{HOSTILE}.jpg"
    tab.close()


@pytest.mark.slow
def test_five_thousand_crops_with_many_epochs_stay_below_ten_megabytes() -> None:
    """Of noise, which no compression makes small."""
    from cvexp.report import explorer

    random = np.random.default_rng(0)
    crops = [Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(200)] * 25
    kept = explorer.kept_epochs(list(range(101)), len(crops))
    assert kept[0] == 0
    assert kept[-1] == 100
    assert len(kept) > 10
    one = embeddings(5000)[0]
    html = page(dict.fromkeys(kept, one), crops, ["a", "b", "c"])
    assert len(html.encode()) < 10_000_000
    assert json.dumps(kept) in html
