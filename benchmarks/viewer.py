"""How fast the viewer is, end to end: ``python -m benchmarks.viewer results/demo``, a minute.

Starts ``eavatar view`` and opens it in headless Chromium (on the path, or named by
``EAVATAR_CHROMIUM``), with WebGL in software on the same cores. Prints the seconds from the start
of the command to the first image in the browser; then, while a slider is pulled to and fro, the
images per second that reach the browser, the CPU time that the server spends on each, and what the
viewer says of the last.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eavatar.view.browser import HOST
from tests.scenes.chromium import Page, open_page

SLIDER = "document.querySelectorAll('[role=slider]')[1]"  # the strongest expression component
FACTS = "document.body.innerText.match(/.*frames per second.*/)"
REACH = 40  # pixels that the slider is pulled to each side
COUNT = (  # the viewer's images arrive as files in JPEG
    "window.images = 0; const make = URL.createObjectURL;"
    "URL.createObjectURL = (file) => { images += file.type === 'image/jpeg'; return make(file); };"
)


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


def pull(page: Page, seconds: float) -> float:
    """Pull the slider to and fro for some seconds; returns the seconds that it took."""
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
    return time.monotonic() - start


def main() -> None:
    """Print the times of a subject."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("results", type=Path, help="results/<subject>")
    parser.add_argument("--seconds", type=float, default=10, help="that the slider is pulled")
    given = parser.parse_args()
    start = time.monotonic()
    with serving(given.results) as (process, port):
        wait_for_port(process, port)
        with open_page(f"http://{HOST}:{port}", 1280, 800) as page:
            while not page.run(f"return Boolean({FACTS});"):
                time.sleep(0.02)
            print(f"first image after {time.monotonic() - start:.1f} s")
            time.sleep(2)  # the page fades in
            page.run(COUNT)
            used = cpu_seconds(process)
            seconds = pull(page, given.seconds)
            used = cpu_seconds(process) - used
            images = page.run("return images;")
            print(f"{images / seconds:.1f} images per second, {used / images:.3f} s of CPU each")
            print(page.run(f"return {FACTS}[0];"))


if __name__ == "__main__":
    main()
