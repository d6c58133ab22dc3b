from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks.viewer import WINDOW, opened
from eavatar.__main__ import main
from eavatar.errors import UserError
from eavatar.landmark_indices import MOUTH
from eavatar.view.browser import HOST, check_address, serve
from eavatar.view.viewer import Viewer
from tests.scenes.chromium import MISSING, Page, find_chromium, open_page
from tests.scenes.talking_head import SIZE, write_talking_head

WIDTH, HEIGHT = 1000, 600  # of the window, pixels
SLIDERS = "[...document.querySelectorAll('[role=slider]')]"
INPUTS = "[...document.querySelectorAll('input')].map(e => e.value)"
DISABLED = "document.querySelectorAll('input[type=checkbox]:disabled').length"
TIMESTEP, JAW = 0, 1  # numbers of sliders


@pytest.fixture(scope="module")
def chromium() -> None:
    if find_chromium() is None:
        pytest.skip(MISSING)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    return Viewer.open(write_talking_head(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def port(viewer: Viewer) -> Iterator[int]:
    """Where the viewer is served."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        free = probe.getsockname()[1]
    server = serve(viewer, HOST, free)
    yield free
    server.stop()


@pytest.fixture(scope="module")
def page(chromium: None, port: int) -> Iterator[Page]:
    """The viewer, open in a browser."""
    with open_page(f"http://{HOST}:{port}", WIDTH, HEIGHT) as opened:
        wait_for(opened, "document.body.innerText.includes('Gaussians')")
        settle(opened)
        yield opened


def wait_for(page: Page, condition: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not page.run(f"return Boolean({condition});"):
        assert time.monotonic() < end, condition
        time.sleep(0.05)


def settle(page: Page) -> np.ndarray:
    """What the canvas shows (H, W, 3), in [0, 1], once that no longer changes."""
    shown, end = page.screenshot("canvas"), time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.6)  # longer than the viewer waits for the image in full size
        before, shown = shown, page.screenshot("canvas")
        if np.array_equal(before, shown):
            return shown
    raise AssertionError("the canvas goes on changing")


def drag(page: Page, *places: tuple[float, float]) -> None:
    """Press the left button of the mouse at the first place, move over the others and let go."""
    for number, (x, y) in enumerate((*places, places[-1])):
        last = number == len(places)
        kind = "mouseReleased" if last else "mouseMoved" if number else "mousePressed"
        place = {"x": x, "y": y, "button": "left", "buttons": int(not last), "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type=kind, **place)


def pull(page: Page, slider: int, distance: float) -> None:
    """Drag a slider to the right, by pixels."""
    x, y = page.run(
        f"const thumb = {SLIDERS}[{slider}]; thumb.scrollIntoView({{block: 'center'}});"
        "const box = thumb.getBoundingClientRect();"
        "return [box.left + box.width / 2, box.top + box.height / 2];"
    )
    drag(page, *((x + distance * part, y) for part in np.linspace(0, 1, 8)))


def click(page: Page, element: str, text: str) -> None:
    page.run(
        f"[...document.querySelectorAll({element!r})].find(e => e.innerText === {text!r}).click();"
    )


def value(page: Page, slider: int) -> float:
    return float(page.run(f"return {SLIDERS}[{slider}].getAttribute('aria-valuenow');"))


def place_on_canvas(viewer: Viewer, canvas: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels of the start's camera to pixels of the canvas, where it is in the middle."""
    height, width = canvas.shape[:2]
    side, camera = min(height, width), viewer.start.camera
    corner = np.array([width - side, height - side]) / 2
    return lambda pixels: corner + pixels * side / camera.width


def test_images_reach_a_client_without_a_browser_while_a_slider_is_pulled(port: int) -> None:
    images, end = 0, time.monotonic() + 30
    with opened(port, with_browser=False) as client:
        while images < 2:  # one alone could be the image at rest
            assert time.monotonic() < end
            pulled = client.pull(0.5)
            images += pulled.images
    size = f"{round(SIZE * WINDOW[0] / WINDOW[1])}×{SIZE}"
    assert re.search(rf"frames per second · {size} · [\d,]+ Gaussians", pulled.facts)


def test_a_slider_opens_the_mouth_and_nothing_else(viewer: Viewer, page: Page) -> None:
    before = settle(page)
    pull(page, JAW, 50)
    after = settle(page)
    assert value(page, JAW) > 1
    click(page, "button", "As tracked")
    tracked = viewer.tracks[viewer.start.sequence]
    mouth = tracked.landmarks[viewer.start.timestep, MOUTH].astype(np.float64)
    pixels = place_on_canvas(viewer, before)(viewer.start.camera.project(mouth)[0])
    left, top = pixels.min(axis=0).astype(int)
    right, bottom = pixels.max(axis=0).astype(int)
    changed = np.abs(after - before).max(axis=2) > 0.1
    reach = bottom - top  # the chin is below
    assert changed[top : bottom + reach, left:right].mean() > 0.2
    assert changed[: top - reach // 2].mean() < 0.001  # eyes and brows, but for the JPEG
    assert page.faults == []


def test_a_telling_expression_is_shown_by_its_button(viewer: Viewer, page: Page) -> None:
    before = settle(page)
    click(page, "button", "Jaw open")
    jaw = next(telling for telling in viewer.telling if telling.name == "Jaw open")
    wait_for(page, f"{SLIDERS}[{TIMESTEP}].getAttribute('aria-valuenow') == {jaw.timestep}")
    assert np.abs(settle(page) - before).max() > 0.1
    click(page, "button", "At rest")
    assert np.abs(settle(page) - before).max() < 0.05  # as it was, but for the JPEG
    assert page.faults == []


def test_dragging_turns_the_avatar_and_a_capture_camera_is_found_again(page: Page) -> None:
    before = settle(page)
    wait_for(page, f"{INPUTS}.includes('222200037')")
    drag(page, (300, 300), (330, 300), (360, 300))
    wait_for(page, f"{INPUTS}.includes('free')")
    wait_for(page, f"{DISABLED} == 1")  # there is no frame to compare with
    assert np.abs(settle(page) - before).max() > 0.1
    page.run(
        "const box = [...document.querySelectorAll('input')].find(e => e.value === 'free');"
        "box.focus(); box.click();"
    )
    wait_for(page, "document.querySelector('[role=option]')")
    click(page, "[role=option]", "222200037")
    wait_for(page, f"{INPUTS}.includes('222200037')")
    wait_for(page, f"{DISABLED} == 0")
    assert np.abs(settle(page) - before).max() < 0.05  # as it was, but for the JPEG
    assert page.faults == []


def test_frames_stand_beside_the_render_where_they_are_asked_for(page: Page) -> None:
    before = settle(page)
    click(page, "label", "Frame and error")
    beside = settle(page)
    assert (beside < 0.9).any(axis=2).any(axis=0).sum() > (before < 0.9).any(axis=2).any(0).sum()
    click(page, "label", "Frame and error")
    assert np.abs(settle(page) - before).max() < 0.05
    assert page.faults == []


def test_the_image_follows_the_shape_of_the_window(viewer: Viewer, page: Page) -> None:
    click(page, "button", "At rest")
    panel = WIDTH - settle(page).shape[1]
    for width, height in ((panel + 800, 400), (panel + 400, 600), (WIDTH, HEIGHT)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        canvas = settle(page)
        assert canvas.shape == (height, width - panel, 3)
        drawn = viewer.draw(viewer.start, aspect=(width - panel) / height) / 255
        # Below the message in a corner. The JPEG makes 0.007, a square that is padded 0.039.
        assert np.abs(cv2.resize(drawn, canvas.shape[1::-1]) - canvas)[220:].mean() < 0.015
    assert page.faults == []


def test_playing_goes_through_the_sequence(page: Page) -> None:
    click(page, "label", "Play")
    seen: set[float] = set()
    end = time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < end:
        seen.add(value(page, TIMESTEP))
    click(page, "label", "Play")
    assert len(seen) >= 3
    settle(page)
    assert page.faults == []


def test_what_is_seen_can_be_taken_away(viewer: Viewer, page: Page, tmp_path: Path) -> None:
    click(page, "button", "At rest")
    canvas = settle(page)
    page.call("Page.setDownloadBehavior", behavior="deny")
    page.run(
        "window.files = {}; const make = URL.createObjectURL;"
        "URL.createObjectURL = (file) => { files[file.type] = file; return make(file); };"
    )
    click(page, "button", "Image")
    image = cv2.imdecode(np.frombuffer(receive(page, "image/png"), np.uint8), cv2.IMREAD_COLOR)
    aspect = canvas.shape[1] / canvas.shape[0]
    assert np.array_equal(image[..., ::-1], viewer.draw(viewer.start, aspect=aspect))
    click(page, "button", "Video")
    (tmp_path / "video.mp4").write_bytes(receive(page, "video/mp4"))
    with av.open(str(tmp_path / "video.mp4")) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == len(viewer.tracks[viewer.start.sequence])
    assert page.faults == []


def receive(page: Page, kind: str) -> bytes:
    """The content of a file that the page was given to save."""
    wait_for(page, f"files[{kind!r}]")
    url = page.run(
        f"const reader = new FileReader(); reader.readAsDataURL(files[{kind!r}]);"
        "await new Promise((done) => { reader.onload = done; }); return reader.result;"
    )
    return base64.b64decode(url.partition(",")[2])


def test_a_port_in_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["view", str(tmp_path), "--port", str(port)]) == 2
    told = capsys.readouterr().err
    assert f"nothing can listen at {HOST}, port {port}" in told
    assert "Address already in use" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 8080), (HOST, 70000)])
def test_an_address_of_nothing_is_told(host: str, port: int) -> None:
    with pytest.raises(UserError, match=f"nothing can listen at {host}, port {port}"):
        check_address(host, port)


def test_only_an_address_that_others_reach_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    check_address(HOST, 0)
    assert caplog.text == ""
    check_address("0.0.0.0", 0)
    assert "Everyone who can reach 0.0.0.0" in caplog.text


def test_a_folder_without_an_avatar_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "074" / "capture").mkdir(parents=True)
    assert main(["view", str(tmp_path / "074"), "--port", "0"]) == 2
    assert "no trained model in splat/ yet" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "075"), "--port", "0"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_model_of_another_version_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "074" / "splat" / "full" / "model.yaml"
    model.parent.mkdir(parents=True)
    model.write_text("format: 99\n")
    assert main(["view", str(tmp_path / "074"), "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert "99" in told
    assert told.count("\n") == 1
