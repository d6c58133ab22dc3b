"""The viewer in a browser: a viser server on this machine, a panel, and a camera that orbits.

Each browser that connects has a view of its own: a state, changed by what people do, and a thread
that draws the newest state. In motion, images are as large as the CPU draws in time; at rest, full.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import viser
from scipy.spatial.transform import Rotation

from eavatar.arrays import Float64, Image
from eavatar.cameras import Camera
from eavatar.data.video import write_video
from eavatar.errors import UserError
from eavatar.io import encode_image
from eavatar.view.modes import FULL_DISPLACEMENT, Mode
from eavatar.view.player import QUALITY, RATE, even
from eavatar.view.viewer import Orbit, Pace, Viewer, ViewState, pad_to_aspect, place_camera

logger = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 8080
REST = 0.25  # seconds after the last change: then the image is drawn in full
SETTLING = 1.0  # seconds that a browser may take to bring its camera where it was sent
SAME_PLACE, SAME_ANGLE = 1e-3, 1e-3  # metres, radians: of a camera that nobody has moved
JPEG_QUALITY = 90
MAX_TURN = 45  # degrees
FREE = "free"  # among the names of cameras
MODE_HINT = f"displacement is red from {100 * FULL_DISPLACEMENT:.0f} mm on"
COMPARE_HINT = "at a capture camera, not where it is free"
TELLING_HINT = "timesteps of the training sequences, found by their landmarks"


def view(folder: Path, variant: str | None, host: str, port: int) -> None:
    """Serve the viewer of ``results/<subject>`` until it is interrupted.

    Args:
        folder: ``results/<subject>``.
        variant: shown first; None as of `eavatar.results.Results.avatar`.
        host: address to listen at; another than this machine's own is warned of.
        port: likewise.

    Raises:
        UserError: the port is in use or the address not this machine's, or as of `Viewer.open`.
    """
    check_address(host, port)
    viewer = Viewer.open(folder, variant)
    viewer.draw(viewer.start)  # kernels are compiled or read now, not when someone waits
    server = serve(viewer, host, port)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop()


def check_address(host: str, port: int) -> None:
    """Warn if others can reach it.

    Raises:
        UserError: nothing can listen there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((*address[:1], port, *address[2:]))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nothing can listen at {host}, port {port} ({error}); choose another --port, or "
            "leave --host away."
        ) from error
    if not ipaddress.ip_address(address[0]).is_loopback:
        logger.warning(
            "Everyone who can reach %s, port %d, can look at this person: there is no password.",
            host,
            port,
        )


def serve(viewer: Viewer, host: str, port: int) -> viser.ViserServer:
    """A server that shows the viewer to each browser that connects."""
    # Else it tells of each connection, and of one that is given up with a traceback.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    server = viser.ViserServer(host, port, label=viewer.results.root.name, verbose=False)
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    server.gui.main_panel.dock_right()
    server.scene.set_up_direction(viewer.up)
    _aim(server.initial_camera, viewer.orbit(viewer.start.camera))
    drawing = threading.Lock()
    views: dict[int, View] = {}

    @server.on_client_connect
    def _(client: viser.ClientHandle) -> None:
        views[client.client_id] = View(client, viewer, drawing)

    @server.on_client_disconnect
    def _(client: viser.ClientHandle) -> None:
        views.pop(client.client_id).close()

    return server


class View:
    """One browser's view.

    Args:
        client: the browser.
        viewer: of the subject.
        drawing: held while something is drawn: avatars are shared.

    Attributes:
        state: what is to be seen.
    """

    def __init__(self, client: viser.ClientHandle, viewer: Viewer, drawing: threading.Lock):
        self.client, self.viewer, self._drawing = client, viewer, drawing
        self.state = viewer.start
        self._state_lock = threading.Lock()
        self._changed, self._closed = threading.Event(), threading.Event()
        self._target, self._sent_at = str(viewer.start.serial), time.monotonic()
        self._panel = Panel(self)
        client.camera.on_update(self._follow)
        threading.Thread(target=self._keep_drawing, daemon=True).start()

    def close(self) -> None:
        """Stop drawing."""
        self._closed.set()
        self._changed.set()

    def change(self, **fields: Any) -> None:
        """Change fields of the state, and have it drawn."""
        with self._state_lock:
            self.state = replace(self.state, **fields)
        self._changed.set()

    def snap(self, serial: str) -> None:
        """Look through a capture camera."""
        target = self.viewer.cameras[serial]
        self._target, self._sent_at = serial, time.monotonic()
        self.change(camera=target, serial=serial)
        with self.client.atomic():
            _aim(self.client.camera, self.viewer.orbit(target))

    def screenshot(self) -> bytes:
        """The present image in full size, as PNG."""
        image = self._draw(self.state, self.client.camera.aspect)
        return encode_image(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def video(self) -> bytes:
        """The present sequence seen as now, in full size, as MP4."""
        state, aspect = self.state, self.client.camera.aspect
        timesteps = range(len(self.viewer.tracks[state.sequence]))
        images = (
            even(self._draw(replace(state, timestep=timestep), aspect)) for timestep in timesteps
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            write_video(path, images, RATE, "yuv420p", QUALITY)
            return path.read_bytes()

    def tell(self, error: UserError) -> None:
        """Show what went wrong."""
        self.client.add_notification("This cannot be shown", str(error), color="red")

    async def _follow(self, camera: viser.CameraHandle) -> None:
        """Leave the capture camera when someone moves, but not while the browser moves there."""
        axes = Rotation.from_quat(camera.wxyz, scalar_first=True).as_matrix()
        target = self.viewer.cameras[self._target]
        if _is_at(target, axes, camera.position):
            self._sent_at = -SETTLING  # it has arrived
            self.change(camera=target, serial=self._target)
        elif time.monotonic() > self._sent_at + SETTLING:
            moved = place_camera(self.state.camera, axes, camera.position)
            self.change(camera=moved, serial=None)
        self._panel.follow(self.state.serial)

    def _keep_drawing(self) -> None:
        full = self.viewer.avatar.settings.image_size
        on_cpu = self.viewer.avatar.device.type == "cpu"
        pace, whole, due = Pace(full), False, 0.0
        while True:
            playing = self._panel.playing.value
            pause = max(due - time.monotonic(), 0.0) if playing else REST
            changed = self._changed.wait(None if whole and not playing else pause)
            self._changed.clear()
            if self._closed.is_set():
                return
            if playing and time.monotonic() >= due:
                due = time.monotonic() + 1 / RATE
                self._panel.step(self._advance())
            moving = changed or playing
            side = pace.side if moving else full
            seconds = self._send(side)
            if moving and on_cpu:
                pace.learn(seconds)
            whole = side == full

    def _advance(self) -> int:
        with self._state_lock:
            following = (self.state.timestep + 1) % len(self.viewer.tracks[self.state.sequence])
            self.state = replace(self.state, timestep=following)
            return following

    def _send(self, side: int) -> float:
        """Draw the state and send it; returns the seconds that this took."""
        start, aspect = time.perf_counter(), self.client.camera.aspect
        try:
            image = self._draw(self.state, aspect, side)
        except UserError as error:
            self.tell(error)
            self._panel.show_less()
            return 0.0
        if self._closed.is_set():
            return 0.0
        padded = pad_to_aspect(image, aspect)
        self.client.scene.set_background_image(padded, "jpeg", jpeg_quality=JPEG_QUALITY)
        self.client.flush()  # else viser waits for 1/60 s after each
        seconds = time.perf_counter() - start
        self._panel.report(image, seconds)
        return seconds

    def _draw(self, state: ViewState, aspect: float, side: int | None = None) -> Image:
        with self._drawing:
            return self.viewer.draw(state, side, aspect)


class Panel:
    """The panel of one browser: what people turn changes the state of a view.

    Args:
        view: whose it is.
    """

    def __init__(self, view: View):
        self._view, viewer, gui = view, view.viewer, view.client.gui
        self._facts, self._reported = gui.add_markdown(""), 0.0
        start = viewer.start
        with gui.add_folder("Timeline"):
            self._sequence = gui.add_dropdown(
                "Sequence", list(viewer.tracks), initial_value=start.sequence
            )
            last = len(viewer.tracks[start.sequence]) - 1
            self._timestep = gui.add_slider("Timestep", 0, last, 1, start.timestep)
            self.playing = gui.add_checkbox("Play", False)
        with gui.add_folder("Look"):
            self.camera = gui.add_dropdown(
                "Camera", [FREE, *viewer.cameras], initial_value=start.serial
            )
            self._mode = gui.add_dropdown("Show", [mode.value for mode in Mode], hint=MODE_HINT)
            self._compare = gui.add_checkbox("Frame and error", False, hint=COMPARE_HINT)
            shown = viewer.variants if len(viewer.variants) > 1 else ()
            self._variants = [gui.add_checkbox(name, name in start.variants) for name in shown]
        with gui.add_folder("Expression"):
            names = [telling.name for telling in viewer.telling]
            self._telling = gui.add_button_group("Tracked", names, hint=TELLING_HINT)
            self._components = [
                gui.add_slider(f"Component {each.index}", -each.limit, each.limit, 0.05, 0.0)
                for each in viewer.components
            ]
        with gui.add_folder("Head"):
            self._turn = [
                gui.add_slider(name, -MAX_TURN, MAX_TURN, 1, 0) for name in ("Nod", "Turn", "Tilt")
            ]
            self._reset = gui.add_button("As tracked")
        with gui.add_folder("Take away"):
            screenshot, video = gui.add_button("Image"), gui.add_button("Video")
        self._connect()
        name = viewer.results.root.name
        screenshot.on_click(self._download(f"{name}.png", view.screenshot))
        video.on_click(self._download(f"{name}.mp4", view.video))

    def place(self, sequence: str, timestep: int) -> None:
        """Have the timeline show a timestep."""
        _assign(self._sequence, sequence)
        self._timestep.max = len(self._view.viewer.tracks[sequence]) - 1
        _assign(self._timestep, timestep)

    def follow(self, serial: str | None) -> None:
        """Have the panel show that a capture camera is looked through, or none."""
        _assign(self.camera, serial or FREE)
        self._compare.disabled = serial is None

    def step(self, timestep: int) -> None:
        """Have the timeline show another timestep of its sequence."""
        _assign(self._timestep, timestep)

    def show_less(self) -> None:
        """Show the first variant alone, which is known to be drawn."""
        start = self._view.viewer.start
        _assign(self._compare, False)
        for box in self._variants:
            _assign(box, box.label in start.variants)
        self._view.change(compare=False, variants=start.variants)

    def report(self, image: Image, seconds: float) -> None:
        """Tell how an image (H, W, 3) was drawn, a few times a second."""
        if time.monotonic() < self._reported + REST:
            return
        self._reported = time.monotonic()
        count = self._view.viewer.count_gaussians(self._view.state)
        size = f"{image.shape[1]}×{image.shape[0]}"
        self._facts.content = f"{1 / seconds:.1f} frames per second · {size} · {count:,} Gaussians"

    def _connect(self) -> None:
        view, start = self._view, self._view.viewer.start
        told = {each.name: each for each in view.viewer.telling}
        size = view.viewer.avatar.settings.head.expression_size

        def follow_timeline() -> None:
            sequence = self._sequence.value
            timestep = min(self._timestep.value, len(view.viewer.tracks[sequence]) - 1)
            self.place(sequence, timestep)
            view.change(sequence=sequence, timestep=timestep)

        def show() -> None:
            telling = told[self._telling.value]
            reset()
            self.place(telling.sequence, telling.timestep)
            view.change(sequence=telling.sequence, timestep=telling.timestep)

        def edit() -> None:
            expression = np.zeros(size)
            for component, slider in zip(view.viewer.components, self._components, strict=True):
                expression[component.index] = slider.value
            nod, turn, tilt = (slider.value for slider in self._turn)
            view.change(expression=tuple(expression.tolist()), turn=(nod, turn, tilt))

        def reset() -> None:
            for slider in (*self._components, *self._turn):
                _assign(slider, 0)
            edit()

        def look() -> None:
            ticked = tuple(box.label for box in self._variants if box.value)
            view.change(
                mode=Mode(self._mode.value),
                compare=self._compare.value,
                variants=ticked or start.variants,
            )

        def snap() -> None:
            if self.camera.value != FREE:
                view.snap(self.camera.value)

        _on_update([self._sequence, self._timestep], follow_timeline)
        _on_update([self.playing], view.change)
        _on_update([*self._components, *self._turn], edit)
        _on_update([self._mode, self._compare, *self._variants], look)
        _on_update([self.camera], snap)
        _on_update([self._telling], show)
        _on_update([self._reset], reset)

    def _download(
        self, name: str, make: Callable[[], bytes]
    ) -> Callable[[viser.GuiEvent[viser.GuiButtonHandle]], None]:
        """What a button does that gives people a file."""

        def download(event: viser.GuiEvent[viser.GuiButtonHandle]) -> None:
            event.target.disabled = True
            try:
                self._view.client.send_file_download(name, make(), save_immediately=True)
            except UserError as error:
                self._view.tell(error)
            finally:
                event.target.disabled = False

        return download


def _on_update(handles: Sequence[Any], act: Callable[[], None]) -> None:
    """Act when someone at the browser, and not this program, has changed one of the handles."""

    async def told(event: viser.GuiEvent[Any]) -> None:
        if event.client is not None:
            act()

    for handle in handles:
        on = handle.on_click if hasattr(handle, "on_click") else handle.on_update
        on(told)


def _assign(handle: Any, value: object) -> None:
    """Give a handle a value; viser's annotations say that it cannot be."""
    handle.value = value


def _aim(camera: viser.InitialCameraConfig | viser.CameraHandle, orbit: Orbit) -> None:
    """Send a browser's camera somewhere."""
    camera.position = orbit.position
    camera.look_at = orbit.look_at
    if isinstance(camera, viser.CameraHandle):
        camera.up_direction = orbit.up
    else:
        camera.up = orbit.up


def _is_at(camera: Camera, axes: Float64, position: Float64) -> bool:
    """Whether a camera is where another one is whose axes (3, 3) and position (3,) are given."""
    turned = Rotation.from_matrix(camera.world_to_camera[:3, :3] @ axes).magnitude()
    moved = np.linalg.norm(camera.centre - position)
    return bool(turned < SAME_ANGLE and moved < SAME_PLACE)
