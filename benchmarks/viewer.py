"""How fast the viewer is, end to end: ``python -m benchmarks.viewer results/demo``, a minute.

Starts ``eavatar view`` and opens it in headless Chromium (on the path, or named by
``EAVATAR_CHROMIUM``), with WebGL in software on the same cores. Prints the seconds from the start
of the command to the first image in the browser; then, while a slider is pulled to and fro, the
images per second that reach the browser, the CPU time that the server spends on each, and what the
viewer says of the last.

``--without-browser`` opens the page's web socket instead, and decodes the messages and each JPEG;
what is left out is the browser's drawing. The slider then moves `PULLS` times a second. Without a
results folder the avatar is a random one of 100,000 Gaussians, drawn at 1024² (2,000 at 128² on the
CPU).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
import viser
import zstandard
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks.frame import random_avatar
from eavatar.avatar.files import write_avatar
from eavatar.settings import Settings
from eavatar.view.browser import HOST
from tests.scenes.chromium import Page, open_page
from tests.scenes.talking_head import EXPRESSIONS, write_talking_head

SLIDER = "document.querySelectorAll('[role=slider]')[1]"  # the strongest expression component
FACTS = "document.body.innerText.match(/.*frames per second.*/)"
REACH = 40  # pixels that the slider is pulled to each side
COUNT = (  # the viewer's images arrive as files in JPEG
    "window.images = 0; const make = URL.createObjectURL;"
    "URL.createObjectURL = (file) => { images += file.type === 'image/jpeg'; return make(file); };"
)
WINDOW = 1280, 800  # pixels
SETTLING = 2.0  # seconds in which the page fades in, and the first graph is captured
PULLS = 120  # a second, without a browser
RANDOM, SMALL_RANDOM = (100_000, 1024), (2_000, 128)  # Gaussians and side on CUDA, on the CPU


@dataclass(frozen=True)
class Pulled:
    """What arrived while the slider was pulled.

    Attributes:
        images: their number.
        seconds: that it took.
        facts: what the viewer says of the last.
    """

    images: int
    seconds: float
    facts: str


class Browser:
    """The viewer in Chromium, from the first image on."""

    def __init__(self, page: Page):
        self._page = page
        while not page.run(f"return Boolean({FACTS});"):
            time.sleep(0.02)

    def pull(self, seconds: float) -> Pulled:
        """Pull the slider to and fro with the mouse."""
        page = self._page
        page.run(COUNT)
        x, y = page.run(
            f"const box = {SLIDER}.getBoundingClientRect();"
            "return [box.left + box.width / 2, box.top + box.height / 2];"
        )
        place = {"x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type="mousePressed", **place)
        start, step = time.monotonic(), 0
        while time.monotonic() < start + seconds:
            step += 1
            place["x"] = x + REACH - abs(step % (4 * REACH) - 2 * REACH)
            page.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        page.call("Input.dispatchMouseEvent", type="mouseReleased", **place)
        took = time.monotonic() - start
        return Pulled(page.run("return images;"), took, page.run(f"return {FACTS}[0];"))


class Socket:
    """The viewer through the web socket of its page, from the first image on."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._images, self._facts = 0, ""
        self._slider: dict[str, Any] = {}
        self._send(
            type="ViewerCameraMessage", wxyz=(1.0, 0.0, 0.0, 0.0), position=(0.0, 0.0, 1.0),
            fov=0.8, near=0.01, far=100.0, image_width=WINDOW[0], image_height=WINDOW[1],
            look_at=(0.0, 0.0, 0.0), up_direction=(0.0, 1.0, 0.0),
        )  # fmt: skip
        receiving = threading.Thread(target=self._receive, daemon=True)
        receiving.start()
        while not (self._images and self._slider and self._facts):
            if not receiving.is_alive():
                sys.exit("the viewer has closed the connection")
            time.sleep(0.001)

    def pull(self, seconds: float) -> Pulled:
        """Move the slider to and fro over its whole range, twice a second."""
        props = self._slider["props"]
        before, start = self._images, time.monotonic()
        while (passed := time.monotonic() - start) < seconds:
            value = props["max"] * (1 - 2 * abs(2 * passed % 2 - 1))
            self._send(type="GuiUpdateMessage", uuid=self._slider["uuid"], updates={"value": value})
            time.sleep(1 / PULLS)
        return Pulled(self._images - before, passed, self._facts)

    def _send(self, **message: object) -> None:
        self._connection.send(msgspec.msgpack.encode(message))

    def _receive(self) -> None:
        try:
            for content in self._connection:
                for message in decode_messages(content):
                    self._note(message)
        except ConnectionClosed:
            return

    def _note(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "BackgroundImageMessage" and message["rgb_data"]:
            data = np.frombuffer(message["rgb_data"], np.uint8)
            self._images += cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
        elif kind == "GuiSliderMessage" and message["props"]["label"].startswith("Component"):
            self._slider = self._slider or message
        elif kind == "GuiUpdateMessage":
            self._facts = message["updates"].get("_markdown", self._facts)


def decode_messages(content: bytes) -> list[dict[str, Any]]:
    """The messages in what viser sends at once: two lengths, then MessagePack in Zstandard."""
    length = int.from_bytes(content[8:16], "little")
    packed = zstandard.ZstdDecompressor().decompress(content[16 : 16 + length])
    messages: list[dict[str, Any]] = msgspec.msgpack.decode(packed)["messages"]
    return messages


@contextmanager
def serving(results: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The viewer's process and port; it may not listen yet."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "eavatar", "view", str(results), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process, port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Return once the process listens there."""
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(process.returncode)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process has used, of all its threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def opened(port: int, with_browser: bool) -> Iterator[Browser | Socket]:
    """The viewer, once an image has arrived."""
    if with_browser:
        with open_page(f"http://{HOST}:{port}", *WINDOW) as page:
            yield Browser(page)
        return
    protocol = Subprotocol(f"viser-v{viser.__version__}")
    address = f"ws://{HOST}:{port}"
    with connect(address, subprotocols=[protocol], compression=None, max_size=None) as connection:
        yield Socket(connection)


def write_random(folder: Path) -> Path:
    """Results whose avatar has learned nothing; returns the folder."""
    count, side = RANDOM if torch.cuda.is_available() else SMALL_RANDOM
    write_talking_head(folder)
    avatar = random_avatar("fast", count, side, EXPRESSIONS)
    write_avatar(folder / "splat" / "full", avatar, Settings())
    return folder


def measure(results: Path, seconds: float, with_browser: bool) -> None:
    """Print the times of a subject."""
    start = time.monotonic()
    with serving(results) as (process, port):
        wait_for_port(process, port)
        with opened(port, with_browser) as client:
            print(f"first image after {time.monotonic() - start:.1f} s", flush=True)
            time.sleep(SETTLING)
            used = cpu_seconds(process)
            pulled = client.pull(seconds)
            used = cpu_seconds(process) - used
            rate = pulled.images / pulled.seconds
            print(f"{rate:.1f} images per second, {used / pulled.images:.3f} s of CPU each")
            print(pulled.facts)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("results", type=Path, nargs="?", help="results/<subject>")
    parser.add_argument("--seconds", type=float, default=10, help="that the slider is pulled")
    parser.add_argument("--without-browser", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = given.results or write_random(Path(folder) / "random")
        measure(results, given.seconds, not given.without_browser)


if __name__ == "__main__":
    main()
