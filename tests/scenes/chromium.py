"""A page in headless Chromium with WebGL in software, asked through pipes (DevTools protocol)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from eavatar.arrays import Float32

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe",
)  # fmt: skip
COMMANDS, ANSWERS = 3, 4  # file descriptors that Chromium reads from and writes to
MISSING = "no Chromium on the path or named by EAVATAR_CHROMIUM"


@cache
def find_chromium() -> str | None:
    """The program; None if there is none."""
    named = os.environ.get("EAVATAR_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Page:
    """A page that is open.

    Attributes:
        commands: file descriptor.
        answers: likewise.
        faults: what the page complained of so far: exceptions, errors in the console or the log.
        requests: addresses that it asked for, but for those inside of it.
    """

    commands: int
    answers: int
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    session: str | None = None
    _number: int = 0
    _read: bytes = b""

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.commands, content) :]
        while (answer := self._next()).get("id") != self._number:
            self._note(answer.get("method", ""), answer.get("params", {}))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def run(self, body: str) -> Any:
        """What an async function with this body returns, in JSON."""
        found = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {body} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def click(self, selector: str, across: float = 0.5, count: int = 1) -> None:
        """Click with the mouse on an element, at a fraction of its width, so many times."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView();")
        left, top, width, height = self._place(selector)
        at = {"x": left + across * width, "y": top + height / 2, "button": "left"}
        for number in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, clickCount=number, **at)

    def screenshot(self, selector: str) -> Float32:
        """What is seen (H, W, 3) of an element, in [0, 1], once all is drawn that was asked for."""
        self.run("for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);")
        left, top, width, height = self._place(selector)
        clip = {"x": left, "y": top, "width": width, "height": height, "scale": 1}
        content = self.call("Page.captureScreenshot", clip=clip)["data"]
        return decode_image(content)

    def _place(self, selector: str) -> list[float]:
        return self.run(
            f"const box = document.querySelector({selector!r}).getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height];"
        )

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            more = os.read(self.answers, 1 << 20)
            if not more:
                raise RuntimeError("Chromium has ended")
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.faults.append(json.dumps(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.faults.append(told["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            address = told["request"]["url"]
            if not address.startswith(("data:", "blob:")):
                self.requests.append(address)


def decode_image(content: str) -> Float32:
    """(H, W, 3) RGB in [0, 1] of a PNG in base64."""
    data = np.frombuffer(base64.b64decode(content), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


@contextmanager
def open_page(address: str, width: int = 800, height: int = 600) -> Iterator[Page]:
    """A page while it is open; its window has that many pixels."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process, commands, answers = _start([f"--user-data-dir={profile}"])
        try:
            page = Page(commands, answers)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            found = page.call("Target.attachToTarget", targetId=target, flatten=True)
            page.session = found["sessionId"]
            for domain in ("Runtime", "Log", "Network", "Page"):
                page.call(f"{domain}.enable")
            size = {"width": width, "height": height, "deviceScaleFactor": 1}
            page.call("Emulation.setDeviceMetricsOverride", **size, mobile=width < height)
            page.call("Page.navigate", url=address)
            page.run("while (document.readyState !== 'complete') await new Promise(setTimeout);")
            yield page
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(commands)
            os.close(answers)


def _start(flags: Sequence[str]) -> tuple[subprocess.Popen[bytes], int, int]:
    """Chromium in a group of its own, where to write commands and where to read answers."""
    program = find_chromium()
    if program is None:
        raise FileNotFoundError(MISSING)
    # With these four open, no pipe of subprocess has the two numbers that Chromium wants.
    reading, commands = os.pipe()
    answers, writing = os.pipe()
    copies = [fcntl.fcntl(end, fcntl.F_DUPFD, ANSWERS + 1) for end in (reading, writing)]

    def connect() -> None:
        os.dup2(copies[0], COMMANDS)
        os.dup2(copies[1], ANSWERS)

    process = subprocess.Popen(
        [program, *FLAGS, *flags],
        preexec_fn=connect,
        pass_fds=(COMMANDS, ANSWERS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for end in (reading, writing, *copies):
        os.close(end)
    return process, commands, answers
