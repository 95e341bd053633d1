"""The speed of training, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from cvexp.console import console


def print_speed(speed: Mapping[str, float], kept: str, draws_on_device: bool) -> None:
    """Print the speed of training and of its parts.

    Args:
        speed: See `cvexp.training.speed.measure`.
        kept: Where decoded images are kept.
        draws_on_device: Whether views are made on the device of the model.
    """
    place = "on the device" if draws_on_device else "in one process of the loader"
    table = Table(title="speed", title_justify="left")
    table.add_column("")
    table.add_column("images/s", justify="right")
    for words, name in (
        ("reading, in one process of the loader", "read_images_per_second"),
        (f"making the views, {place}", "view_images_per_second"),
        ("bare training step", "step_images_per_second"),
        ("whole training", "images_per_second"),
    ):
        table.add_row(words, f"{speed[name]:,.1f}")
    table.add_section()
    table.add_row("whole training / bare step", f"{speed['fit_over_step']:.2f}")
    table.add_row("share of time waiting for data", f"{speed['data_wait']:.1%}")
    table.add_row("peak memory", f"{speed['peak_memory_bytes'] / 2**30:.2f} GiB")
    share = speed["model_flops"] / speed["matmul_flops"]
    table.add_row("GFLOP/s of the step (share of a matrix product)", f"{speed['model_flops'] / 1e9:,.0f} ({share:.0%})")
    table.add_row("decoded images kept in", kept)
    console.print(table)
