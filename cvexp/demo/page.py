"""The page: a photo and a class to choose, and beside them what the network makes of them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from cvexp.demo.photos import read_photo
from cvexp.demo.views import look
from cvexp.errors import UserError
from cvexp.inference.segmenter import Segmenter
from cvexp.report.style import shorten

ALL = -1  # the choice of all classes
KEPT_SECONDS = 3600  # how long the files of a visitor are kept

# The variables are those of Gradio's theme, which follow the light or dark mode of the browser.
CSS = """
#heading h1 { font-size: 1.4em; font-weight: 600; margin: 0 0 .2em; overflow-wrap: anywhere }
#heading p, #table p { opacity: .75; overflow-wrap: anywhere }
#problem { border-left: 4px solid #D55E00; padding: .2em .8em }
.picture { padding-top: 26px } /* for the label and the buttons, which would cover the image */
.picture [data-testid=block-label], .picture .top-panel { border: none; background: none; box-shadow: none }
.picture:not(#photo) .top-panel { top: -25px }
.picture img { width: 100%; height: 100%; object-fit: contain }
.legend { display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr)); gap: .3em 2em; padding: 0 }
.legend li { display: flex; align-items: center; gap: .6em; list-style: none; margin: 0 }
.legend i { width: 1em; height: 1em; border-radius: 3px; border: 1px solid var(--border-color-primary); flex: none }
.legend span { flex: 1; overflow-wrap: anywhere }
.legend b { font-variant-numeric: tabular-nums }
.legend .absent span, .legend .absent b { opacity: .65; font-weight: normal }
"""


class Page:
    """Lays out the page, and answers what a visitor does on it.

    Args:
        segmenter: The network.
        heading: HTML of the title and of what is known about the network.
        examples: Photos to try, at the size of the page.
    """

    def __init__(self, segmenter: Segmenter, heading: str, examples: Sequence[Image.Image]) -> None:
        self.segmenter, self.examples = segmenter, examples
        with gr.Blocks(
            title="cvexp demo", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
        ) as self.blocks:
            gr.HTML(heading, elem_id="heading")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self._add_inputs()
                with gr.Column(scale=3, min_width=300):
                    self._add_outputs()
            self._connect()

    def _add_inputs(self) -> None:
        choices = [("all classes", ALL), *((shorten(name), i) for i, name in enumerate(self.segmenter.classes))]
        self.kept = gr.State()  # the photo, reduced
        self.photo = gr.Image(
            label="Photo",
            sources=["upload", "clipboard"],
            type="filepath",
            format="jpeg",
            height=320,
            buttons=[],
            elem_id="photo",
            elem_classes="picture",
        )
        self.problem = gr.HTML(visible=False, elem_id="problem")
        self.choice = gr.Dropdown(choices, value=ALL, label="Class", elem_id="choice")
        self.example = gr.Dataset(
            label="Examples from the validation images",
            components=[gr.Image(visible=False, format="jpeg")],
            samples=[[image] for image in self.examples],
            type="index",
            visible=bool(self.examples),
            elem_id="examples",
        )

    def _add_outputs(self) -> None:
        shown: dict[str, Any] = {
            "interactive": False,
            "format": "jpeg",
            "buttons": ["download", "fullscreen"],
            "elem_classes": "picture",
        }
        hidden: dict[str, Any] = {**shown, "visible": False, "height": 260, "min_width": 140}
        self.labels = gr.Image(label="Label map", height=420, elem_id="labels", **shown)
        with gr.Row():
            self.probability = gr.Image(label="Probability", elem_id="probability", **hidden)
            self.attention = gr.Image(label="Attention", elem_id="attention", **hidden)
        self.table = gr.HTML(elem_id="table")

    def _connect(self) -> None:
        """Connect events with their answers. The network works for one visitor at a time."""
        outputs = [self.kept, self.photo, self.problem, self.labels, self.probability, self.attention, self.table]
        common: dict[str, Any] = {"outputs": outputs, "concurrency_id": "network", "api_visibility": "private"}
        # Without preprocessing, in which Gradio would decode the file itself.
        self.photo.upload(self.take_upload, [self.photo, self.choice], preprocess=False, **common)
        self.photo.clear(self.answer, None, **common)
        self.choice.change(self.take_choice, [self.kept, self.choice], **common)
        self.example.click(self.take_example, [self.example, self.choice], **common)

    def take_upload(self, payload: dict[str, Any] | None, choice: int) -> dict[Any, Any]:
        """Answer an upload. Gradio has checked that the path of the payload is in its folder of uploads."""
        try:
            photo = read_photo(Path((payload or {}).get("path") or ""))
        except UserError as error:
            return self.answer(problem=str(error))
        return self.answer(photo, choice)

    def take_choice(self, photo: Image.Image | None, choice: int) -> dict[Any, Any]:
        """Answer the choice of a class."""
        return {} if photo is None else self.answer(photo, choice)

    def take_example(self, number: int, choice: int) -> dict[Any, Any]:
        """Answer the choice of an example."""
        return self.answer(self.examples[number], choice)

    def answer(self, photo: Image.Image | None = None, choice: int = ALL, problem: str = "") -> dict[Any, Any]:
        """Return what the components show: the results for a photo, or nothing but a problem."""
        shown = {
            self.kept: photo,
            self.photo: photo,
            self.problem: gr.HTML(f"<p role=alert>{html.escape(problem)}</p>", visible=bool(problem)),
        }
        if photo is None:
            pictures = {self.labels: None, self.probability: gr.Image(visible=False)}
            return {**shown, **pictures, self.attention: gr.Image(visible=False), self.table: ""}
        view = look(self.segmenter, photo, None if choice == ALL else self.segmenter.classes[choice])
        return {
            **shown,
            self.labels: gr.Image(view.labels, label="Label map" if choice == ALL else "Mask"),
            self.probability: gr.Image(view.probability, visible=view.probability is not None),
            self.attention: gr.Image(view.attention, visible=view.attention is not None),
            self.table: view.table,
        }
