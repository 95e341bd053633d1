"""The part of the pretraining section on feature maps."""

from __future__ import annotations

from cvexp.report import dense
from cvexp.report.document import Picture, png
from cvexp.report.sections.material import Blocks
from cvexp.report.style import state_of
from cvexp.tracking.finished import FinishedRun, recorded_epochs

NUM_EPOCHS = 5  # in the figure


def dense_blocks(run: FinishedRun) -> Blocks:
    """Show the feature maps over the epochs, and the attention at the last one; nothing if the run recorded none."""
    recorded = recorded_epochs(run.store, run.id, "dense")
    if not recorded:
        return []
    last = len(recorded) - 1
    chosen = sorted({recorded[round(last * i / (NUM_EPOCHS - 1))] for i in range(NUM_EPOCHS)})
    records = {epoch: dense.read_record(run.store, run.id, epoch) for epoch in chosen}
    newest = records[chosen[-1]]
    records = {epoch: record for epoch, record in records.items() if record.fits(newest)}
    num_images, height, width = newest.scores.shape[:3]
    alt = f"Feature maps of {num_images} validation images as colors at epochs {', '.join(map(str, records))}"
    caption = (
        f"Feature maps of {num_images} whole validation images, {height} x {width} positions each (run {run.id[:8]}). "
        "Red, green and blue are the three main components, fitted once to the images of all these epochs; each "
        "epoch's features are centered and have unit variance. Positions with similar features have similar colors."
    )
    blocks: Blocks = [Picture(png(dense.draw_epochs(records)), alt, caption, wide=True, screen_only=True)]
    if num_heads := newest.attention.shape[1]:
        of_class_token, state = bool(newest.of_class_token), state_of(chosen[-1])
        query = "the class token" if of_class_token else "all positions, on average,"
        images = list(newest.images)
        figure = dense.draw_attention(images, list(newest.attention), [""] * num_images, of_class_token, state)
        alt = f"Attention of {query} to each position of {num_images} validation images, for {num_heads} heads"
        caption = (
            f"Attention of {query} in the last block by head, {state} (run {run.id[:8]}). Each map is scaled to "
            "its own largest weight, so brightness can't be compared between maps."
        )
        blocks.append(Picture(png(figure), alt, caption, wide=True, screen_only=True))
    return blocks
