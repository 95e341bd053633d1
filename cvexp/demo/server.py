"""The server of the page, without telemetry and without a tunnel to the internet."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Sequence

import gradio as gr
from PIL import Image

from cvexp import progress
from cvexp.console import print_line
from cvexp.demo.page import CSS, Page
from cvexp.errors import Interrupted, UserError
from cvexp.inference.segmenter import Segmenter

MAX_UPLOAD = "100mb"


def serve(segmenter: Segmenter, heading: str, examples: Sequence[Image.Image], host: str, port: int) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        segmenter: The network.
        heading: HTML of the title and of what is known about the network.
        examples: Photos to try, at the size of the page.
        host: The name or address at which the server listens.
        port: The port at which it listens.

    Raises:
        UserError: if it can't listen there.
    """
    is_private = check_address(host, port)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks the new server whether it is there,
    os.environ["no_proxy"] = f"{host},localhost,{os.environ.get('no_proxy', '')}"  # which must not take a detour
    with tempfile.TemporaryDirectory(prefix="cvexp-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of the visitors' photos
        blocks = Page(segmenter, heading, examples).blocks
        try:
            blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                max_file_size=MAX_UPLOAD,
                theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=CSS,
                quiet=True,
                prevent_thread_lock=True,
            )
            if not is_private:
                print_line(f"task.host={host}: anyone who can reach this machine can use the demo", style="yellow")
            shown = socket.gethostname() if host == "0.0.0.0" else host
            print_line(f"open http://{shown}:{port} (Ctrl-C ends the demo)")
            progress.configure(None)  # it lasts until somebody ends it
            threading.Event().wait()
        except (KeyboardInterrupt, Interrupted):  # how a demo ends
            print_line("the demo has ended")
        finally:
            blocks.close(verbose=False)


def check_address(host: str, port: int) -> bool:
    """Return whether only programs on this machine can reach an address.

    Raises:
        UserError: if a server can't listen there.
    """
    try:
        with socket.create_server((host, port)) as server:
            return ipaddress.ip_address(server.getsockname()[0]).is_loopback
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"task.port: another program uses {port}, maybe another demo; end it, or choose another port, such as "
                f"task.port={port + 1}"
            ) from error
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UserError(
            f"task.host: a server can't listen at {host}:{port} ({reason}); use 127.0.0.1 for this machine only, or "
            "0.0.0.0 for its network, and a port from 1024"
        ) from error
