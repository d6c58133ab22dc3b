"""``report.html``: one self-contained page on a subject, from raw frames to metrics."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.cameras import Camera
from eavatar.data.frames import read_masks
from eavatar.data.images import read_grey, read_rgb, read_rgba
from eavatar.errors import UserError
from eavatar.io import (
    Landmarks,
    Tracking,
    atomic,
    read_alignment,
    read_arrays,
    read_cameras,
    read_json,
    read_mesh,
    read_sequences,
    read_table,
    require,
)
from eavatar.rendering.mesh_images import Byte, Colour, contact_sheet, draw_meshes
from eavatar.tables.drawing import (
    FULL_ERROR,
    draw_contour,
    draw_lines,
    draw_points,
    draw_regions,
    order_along_arc,
    shrink,
)
from eavatar.tables.figures import Picture
from eavatar.tables.page import (
    curve,
    details,
    figure,
    grid,
    inline_image,
    inline_video,
    page,
    section,
    stage_graph,
    table,
    tiles,
)
from eavatar.tables.regions import PERSON, Head, find_regions
from eavatar.tables.table import MAIN, METRICS, REGIONAL, format_columns, format_value

STAGES = (
    ("capture", ("check", "choose_sequences", "calibrate", "ingest", "matte")),
    ("face", ("detect_landmarks", "fit_face", "refine_face", "measure_gaze", "measure_appearance")),
    ("prior", ("prepare_prior", "run_generator", "generate_prior", "align_prior")),
    ("sdf", ("train_sdf",)),
    ("splat", ("train_splat",)),
    ("tables", ("evaluate", "floors", "metrics", "report")),
)
SHORTCUTS = (
    ("capture", "sdf"),
    ("capture", "splat"),
    ("capture", "tables"),
    ("face", "sdf"),
    ("face", "splat"),
    ("face", "tables"),
)
THUMBNAIL, FACE_HEIGHT, STRIP_HEIGHT, MESH_SIZE = 150, 300, 256, 300
VIDEO_HEIGHT = 320
SKIN: Colour = (222, 170, 140)
CLAY: Colour = (150, 180, 205)
GREEN: Colour = (0, 210, 90)
RED: Colour = (230, 40, 40)
REPROJECTION_COLUMNS = 6
GREY, GENERATOR_HEIGHT = 128, 420
ANGLES = (0, 45, 90)
FLAGS = ("ok", "few cameras", "interpolated", "large residual")  # of the fit's quality.csv


@dataclass(frozen=True)
class ShownTimestep:
    """One timestep of one sequence.

    Attributes:
        sequence: its name.
        timestep: index within the sequence.
        pose: rotation (3,), axis-angle, radians, and translation (3,), metres.
        landmarks: (68, 3) world, metres.
    """

    sequence: str
    timestep: int
    pose: tuple[np.ndarray, np.ndarray]
    landmarks: np.ndarray


def report(
    subject: str,
    variant: str,
    results: Path,
    output: Path,
    generation: Path | None = None,
    reenactments: Sequence[Path] = (),
) -> Path:
    """Write the report page of a subject; a page needs no network, no script and no other file.

    Args:
        subject: its name.
        variant: whose stage I, stage II and images are shown; the table has all variants.
        results: ``results/<subject>``, complete up to ``metrics.csv``.
        output: the page, ``report.html``.
        generation: ``prior/generation.json``, where a generator made the prior.
        reenactments: videos of `eavatar.view.reenact` with the avatar; their sheets lie beside.
    Returns:
        ``output``.
    Raises:
        UserError: a file of a stage is missing, or ``metrics.csv`` lacks the variant.
    """
    capture, face = results / "capture", results / "face"
    cameras = read_cameras(capture / "cameras.json")
    path = results / "metrics.csv"
    means = read_table(path, "the table of metrics", ["variant"])
    if variant not in set(means["variant"]):
        raise UserError(f"{path} has no variant '{variant}'; run `metrics` again.")
    tracks = _read_tracks(capture, face)
    sections = [
        lambda: _head(subject, variant, means),
        lambda: _comparisons(results / "tables" / variant / "pictures"),
        lambda: _regions(results, cameras, tracks),
        *([lambda: _reenactments(subject, reenactments)] if reenactments else []),
        _pipeline,
        lambda: _frames(capture, cameras, tracks),
        lambda: _face(capture, cameras, tracks),
        lambda: _fit_quality(capture, face, cameras, list(tracks)),
        *([lambda: _generation(generation)] if generation else []),
        lambda: _shapes(results, variant),
        lambda: _curves("Stage I: training", results / "sdf" / variant / "log.csv"),
        lambda: _curves("Stage II: training", results / "splat" / variant / "log.csv"),
        lambda: _run(results, variant, {*tracks, *means["variant"]}),
    ]
    body = [make() for make in tqdm(sections, desc="report", unit="section")]
    with atomic(output) as temporary:
        temporary.write_text(page(f"EAvatar: {subject}", body), encoding="utf-8")
    return output


def _head(subject: str, variant: str, means: pd.DataFrame) -> str:
    rows = means[means["variant"] == variant].set_index("protocol")
    shown = format_columns(means, ["variant", "protocol", "cameras", "images"], METRICS)
    held_out = rows.loc["self_reenactment"]
    gain = held_out["psnr_db"] - rows.loc["neutral_expression", "psnr_db"]
    large = [(format_value(held_out[m.column], m.digits), m.label) for m in MAIN]
    text = (
        "The avatar is driven by expressions and poses that it has not seen in training "
        "(self_reenactment) and compared with the recorded images: the whole head with shoulders, "
        "on white, all cameras; means over images. The padding of the crop is left out. For "
        "neutral_expression the same poses are rendered with the expression frozen at neutral: the "
        "difference is what the expression adds. The floors show a camera's training frames: their "
        "mean, and the one of the nearest expression and pose. SSIM uses an 11×11 Gaussian window "
        "(σ 1.5). A dash: not measured, because the weights of LPIPS were not at hand."
    )
    return (
        f'<h1>{escape(subject)}</h1><p class="soft">EAvatar, variant “{escape(variant)}”</p>'
        f"{tiles([*large, (f'{gain:+.2f} dB', 'gain from expression')])}"
        f"{table(shown)}<p>{text}</p>"
    )


def _comparisons(folder: Path) -> str:
    paths = sorted(require(folder, "the folder of pictures").glob("*.png"))
    figures = []
    for path in paths:
        shown = Picture.of(path)
        strip = shrink(read_rgb(path, "evaluate"), STRIP_HEIGHT)
        name = f"{shown.sequence}, timestep {shown.timestep}, camera {shown.camera}"
        figures.append(figure(inline_image(strip, name), name))
    text = (
        "Truth, render and error side by side, of the held-out frames with the strongest "
        "expressions, from cameras all along the arc. The error is the mean absolute difference "
        f"of the colours: white is none, dark violet is {FULL_ERROR:.0%} of the range or more."
    )
    return section("Truth, render, error", text, grid(figures))


def _regions(results: Path, cameras: dict[str, Camera], tracks: dict[str, Tracking]) -> str:
    capture = results / "capture"
    means = read_table(results / "regions.csv", "the table of regions", ["variant"])
    shown = _strongest(tracks, read_sequences(capture / "sequences.json").test[0])
    order = _along_arc(cameras, shown)
    chosen = (order[len(order) // 6], order[len(order) // 2], order[-1])
    drawn = [_draw_regions(capture, shown, serial, cameras[serial]) for serial in chosen]
    text = (
        "PSNR of parts of the head, means over the images in which a part is seen: that of the "
        "whole image hardly moves with the expression. The parts come from the tracked landmarks "
        "and the mask."
    )
    caption = (
        "Eyes green, brows magenta, mouth red, rest of the face pale, hair brown, neck and torso "
        "blue, and across them the outline, yellow."
    )
    return section(
        "Regions",
        text,
        table(format_columns(means, ["variant", "protocol"], REGIONAL)),
        figure(inline_image(contact_sheet(drawn, len(drawn)), "regions"), caption),
    )


def _draw_regions(capture: Path, shown: ShownTimestep, serial: str, camera: Camera) -> Byte:
    mask = _read_mask(capture, shown, serial)
    visible = read_grey(capture / "visible" / f"{serial}.png", "calibrate")
    rotation = Rotation.from_rotvec(shown.pose[0]).as_matrix()
    head = Head(shown.landmarks.astype(np.float64), rotation)
    regions = find_regions(head, camera, mask >= 255 * PERSON, visible >= 255)
    return shrink(draw_regions(_read_frame(capture, shown, serial), regions), FACE_HEIGHT)


def _reenactments(subject: str, videos: Sequence[Path]) -> str:
    figures = []
    for path in videos:
        name = f"moved by {path.stem.removeprefix(f'{subject}_')}"
        sheet = read_rgb(require(path.with_suffix(".jpg"), "the contact sheet"), "reenact")
        figures += [
            figure(inline_video(require(path, "the video"), name, VIDEO_HEIGHT), name),
            figure(inline_image(sheet, name), f"{name}: timesteps of strong expression"),
        ]
    text = (
        "The avatar moved by another person: what is carried over is the other's difference from "
        "rest, of expression and of pose. On the left, or above, the recording."
    )
    return section("Reenactment", text, *figures)


def _pipeline() -> str:
    text = (
        "Rules by stage, from left to right; each stage reads the files of the one before it. "
        "Arcs lead to the stages that read the same files later."
    )
    graph = f'<div class="scroll">{stage_graph(STAGES, SHORTCUTS)}</div>'
    return section("Pipeline", text, graph)


def _frames(capture: Path, cameras: dict[str, Camera], tracks: dict[str, Tracking]) -> str:
    shown = _strongest(tracks, sorted(tracks)[-1])
    order = _along_arc(cameras, shown)
    frames = [_read_frame(capture, shown, serial) for serial in order]
    outlined = [
        draw_contour(frame, _read_mask(capture, shown, serial), GREEN)
        for frame, serial in zip(frames, order, strict=True)
    ]
    where = f"{shown.sequence}, timestep {shown.timestep}"
    columns = min(8, len(order))
    sheets = [
        contact_sheet([shrink(image, THUMBNAIL) for image in images], columns)
        for images in (frames, outlined)
    ]
    return section(
        "Capture",
        f"One timestep ({where}) as all cameras saw it, from the head's right to its left, "
        "cropped and corrected in colour. Views whose mask has failed, because it covers too "
        "little or too much or jumps in time, are neither trained on nor evaluated.",
        figure(inline_image(sheets[0], "all cameras"), f"Cameras {', '.join(order)}."),
        figure(
            inline_image(sheets[1], "masks"), "The same, with the outline of the mask in green."
        ),
        table(pd.DataFrame([_count_views(capture, sequence) for sequence in tracks])),
    )


def _count_views(capture: Path, sequence: str) -> dict[str, str]:
    index = read_masks(capture, sequence)
    return {
        "sequence": sequence,
        "timesteps": str(index["timestep"].nunique()),
        "views": str(len(index)),
        "failed masks": str(int(index["failed"].sum())),
    }


def _face(capture: Path, cameras: dict[str, Camera], tracks: dict[str, Tracking]) -> str:
    figures = []
    for sequence in tracks:
        shown = _strongest(tracks, sequence)
        order = _along_arc(cameras, shown)
        drawn = []
        for serial in (order[len(order) // 6], order[len(order) // 2], order[-1]):
            frame = shrink(_read_frame(capture, shown, serial), FACE_HEIGHT)
            camera = cameras[serial].resize(frame.shape[1], frame.shape[0])
            points, _ = camera.project(shown.landmarks.astype(np.float64))
            drawn.append(draw_points(frame, points, GREEN))
        name = f"{sequence}, timestep {shown.timestep}"
        figures.append(figure(inline_image(contact_sheet(drawn, len(drawn)), name), name))
    text = (
        "The 68 landmarks of the fitted morphable model, projected into three of the cameras, at "
        "the strongest expression of each sequence. Below, the distance between the projected "
        "landmarks and the detections, over timesteps and cameras, in pixels of the ingested "
        "frames."
    )
    rows = pd.DataFrame([_reprojection(name, track, cameras) for name, track in tracks.items()])
    return section("Face", text, grid(figures), table(rows))


def _reprojection(name: str, track: Tracking, cameras: dict[str, Camera]) -> dict[str, str]:
    width = next(iter(cameras.values())).width
    median, high = np.nanpercentile(track.reprojection_error, [50, 95])
    return {
        "sequence": name,
        "timesteps": str(len(track.expression)),
        "median (px)": f"{median:.2f}",
        "95 % (px)": f"{high:.2f}",
        "median (% of the image width)": f"{100 * median / width:.2f}",
    }


def _fit_quality(
    capture: Path, face: Path, cameras: dict[str, Camera], sequences: list[str]
) -> str:
    fit = face / "fit"
    quality = read_table(fit / "quality.csv", "the quality of the landmark fit", ["sequence"])
    tracks = {name: read_arrays(Tracking, fit / "tracking" / f"{name}.npz") for name in sequences}
    errors = np.concatenate([track.reprojection_error for track in tracks.values()])
    text = (
        "How far the detections bear out the landmark fit. A timestep is ok if three cameras or "
        "more agree with it; with fewer, none can tell which of them is wrong (few cameras), "
        "without any its neighbours stand in for it (interpolated); a large residual is over twice "
        "the median. A camera far above the others is out of place or out of time: it spoils the "
        "images, and is best left out."
    )
    by_sequence = [_count_flags(name, rows) for name, rows in quality.groupby("sequence")]
    by_camera = [
        _rate_camera(serial, errors[:, place]) for place, serial in enumerate(sorted(cameras))
    ]
    shown = _strongest(tracks, max(sequences))
    return section(
        "Quality of the fit",
        text,
        _all_reprojections(capture, face, cameras, shown),
        table(pd.DataFrame(by_sequence)),
        table(pd.DataFrame(by_camera)),
    )


def _all_reprojections(
    capture: Path, face: Path, cameras: dict[str, Camera], shown: ShownTimestep
) -> str:
    """The landmarks of the fit in every camera, joined to what was detected there."""
    detected = read_arrays(Landmarks, face / "landmarks" / f"{shown.sequence}.npz")
    order, drawn = _along_arc(cameras, shown), []
    for serial in order:
        frame = shrink(_read_frame(capture, shown, serial), FACE_HEIGHT)
        camera = cameras[serial].resize(frame.shape[1], frame.shape[0])
        fitted, _ = camera.project(shown.landmarks.astype(np.float64))
        place = detected.cameras.tolist().index(serial)
        found = cameras[serial].map_pixels(detected.points[shown.timestep, place], camera)
        seen = detected.confidence[shown.timestep, place] > 0
        lines = draw_lines(frame, found[seen], fitted[seen], RED)
        drawn.append(draw_points(lines, fitted, GREEN))
    caption = (
        f"{shown.sequence}, timestep {shown.timestep}: landmarks of the fit in every camera, in "
        "green, and red lines to the detections. In a camera that is out of place all lines are "
        f"long and point the same way. Cameras {', '.join(order)}."
    )
    sheet = contact_sheet(drawn, min(len(drawn), REPROJECTION_COLUMNS))
    return figure(inline_image(sheet, "reprojected landmarks"), caption)


def _count_flags(sequence: str, rows: pd.DataFrame) -> dict[str, str]:
    counts = {flag: int((rows["flag"] == flag).sum()) for flag in FLAGS}
    shown = {"sequence": sequence, "timesteps": str(len(rows))}
    shown |= {flag: str(count) for flag, count in counts.items()}
    return shown | {"ok (%)": f"{100 * counts['ok'] / len(rows):.0f}"}


def _rate_camera(serial: str, errors: np.ndarray) -> dict[str, str]:
    seen = errors[np.isfinite(errors)]
    return {
        "camera": serial,
        "timesteps with a face": str(len(seen)),
        "median distance to the detections (px)": f"{np.median(seen):.2f}" if len(seen) else "–",
    }


def _generation(record: Path) -> str:
    """What a generator was shown, and what it made of it."""
    content = read_json(record, "the record of the generator")
    asked, mesh, run = (content[part] for part in ("asked", "mesh", "run"))
    figures = []
    for view in asked["views"]:
        image = read_rgba(record.parent / view["image"], "prepare-prior")
        alpha = image[..., 3:] / 255
        on_grey = (image[..., :3] * alpha + GREY * (1 - alpha)).round().astype(np.uint8)
        caption = (
            f"{view['name']}: {view['sequence']}, timestep {view['timestep']}, camera "
            f"{view['camera']}, {view['degrees_off']:.0f}° off; {view['size']} pixels."
        )
        figures.append(figure(inline_image(shrink(on_grey, GENERATOR_HEIGHT), caption), caption))
    memory = run["peak_gpu_memory_gib"]
    rows = {
        "source": asked["source"],
        "seed": asked["settings"]["seed"],
        "vertices": mesh["vertices"],
        "faces": mesh["faces"],
        "watertight": "yes" if mesh["watertight"] else "no",
        "seconds": run["seconds"],
        "device": run["device"],
        "peak GPU memory (GiB)": "–" if memory is None else memory,
    }
    text = (
        "The head with the least expression as the generator was shown it: cut out by the mask, "
        "off at the neck, here on grey. Where hair is missing, or background is left, the mesh has "
        "the same fault."
    )
    return section("Generated prior", text, grid(figures), table(pd.DataFrame([rows])))


def _shapes(results: Path, variant: str) -> str:
    fit = read_mesh(results / "face" / "neutral.ply")
    prior = read_mesh(results / "prior" / "aligned.ply")
    surface = read_mesh(results / "sdf" / variant / "neutral.ply")
    reach = max(float(np.abs(mesh.vertices).max()) for mesh in (fit, prior, surface)) * 1.02
    rows = [
        ([(fit, SKIN)], "The fitted morphable model at rest."),
        (
            [(fit, SKIN), (prior, CLAY)],
            "The aligned prior (blue) with the fit (skin): where the colours interlock, the two "
            "surfaces cross.",
        ),
        ([(prior, CLAY)], "The aligned prior alone."),
        ([(surface, SKIN)], "The neutral surface of stage I."),
    ]
    figures = []
    for meshes, caption in rows:
        views = [draw_meshes(meshes, angle, MESH_SIZE, reach) for angle in ANGLES]
        figures.append(figure(inline_image(contact_sheet(views, len(views)), caption), caption))
    figures.append(_alignment(results / "prior"))
    text = "Canonical space from the front, from 45° and from the head's left, all at one scale."
    return section("Prior and stage I", text, grid(figures))


def _alignment(prior: Path) -> str:
    alignment = read_alignment(prior / "alignment.json")
    image = read_rgb(require(prior / "alignment.png", "the image of the alignment"), "align_prior")
    verdict = "accepted" if alignment.accepted else "rejected: stage I did without it"
    caption = (
        "The fitted face, and the aligned prior in the colour of its distance to the fitted head: "
        "green is none, yellow 5 mm, red 1 cm or more; from the front and from the head's left. "
        f"Confidence {alignment.confidence:.2f}, {verdict}; prior and face are "
        f"{100 * alignment.residual:.1f} mm apart on average."
    )
    return figure(inline_image(image, "alignment of the prior"), caption)


def _curves(title: str, path: Path) -> str:
    log = pd.read_csv(require(path, "the training log"))
    figures = []
    for name in log.columns.drop(["step", "seconds"], errors="ignore"):
        logged = log[["step", name]].dropna()
        if not logged.empty:
            figures.append(
                curve(name, logged["step"].to_numpy(float), logged[name].to_numpy(float))
            )
    text = "Every logged value over the steps: pale as logged, strong as running median."
    return section(title, text, grid(figures, small=True))


def _run(results: Path, variant: str, jobs: Container[str]) -> str:
    """Time and memory of the rules, the settings of the models.

    Args:
        results: of the subject.
        variant: whose models are shown.
        jobs: names of sequences and variants that are part of the results.
    """
    parts = []
    folder = results / "benchmarks"
    paths = [p for p in sorted(folder.rglob("*.tsv")) if p.parent == folder or p.stem in jobs]
    timings = [_timing(folder, path) for path in paths]
    if timings:
        groups = pd.DataFrame(timings).groupby("rule", sort=False)
        rows = [
            {
                "rule": rule,
                "jobs": str(len(group)),
                "time in all (s)": f"{group['seconds'].sum():.0f}",
                "peak memory (MB)": f"{group['megabytes'].max():.0f}",
            }
            for rule, group in groups
        ]
        parts.append(table(pd.DataFrame(rows)))
    for stage in ("sdf", "splat"):
        path = require(results / stage / variant / "model.yaml", "the settings of the model")
        parts.append(details(f"settings of {stage}", path.read_text()))
    return section("Run", "Time and memory of the rules, and the settings of both stages.", *parts)


def _timing(folder: Path, path: Path) -> dict[str, str | float]:
    """A benchmark file of Snakemake: <rule>.tsv or <rule>/<job>.tsv."""
    row = pd.read_csv(path, sep="\t", na_values="-").iloc[0]
    rule = path.relative_to(folder).with_suffix("").parts[0]
    return {"rule": rule, "seconds": float(row["s"]), "megabytes": float(row["max_rss"])}


def _read_tracks(capture: Path, face: Path) -> dict[str, Tracking]:
    names = read_sequences(capture / "sequences.json").names
    return {name: read_arrays(Tracking, face / "tracking" / f"{name}.npz") for name in names}


def _strongest(tracks: dict[str, Tracking], sequence: str) -> ShownTimestep:
    """The timestep with the largest norm of the expression coefficients."""
    track = tracks[sequence]
    timestep = int(np.linalg.norm(track.expression, axis=1).argmax())
    pose = (track.rotation[timestep], track.translation[timestep])
    return ShownTimestep(sequence, timestep, pose, track.landmarks[timestep])


def _along_arc(cameras: dict[str, Camera], shown: ShownTimestep) -> list[str]:
    serials = list(cameras)
    centres = np.stack([camera.centre for camera in cameras.values()])
    return [serials[index] for index in order_along_arc(centres, *shown.pose)]


def _read_frame(capture: Path, shown: ShownTimestep, serial: str) -> Byte:
    return read_rgb(capture / shown.sequence / serial / f"{shown.timestep:05d}.jpg")


def _read_mask(capture: Path, shown: ShownTimestep, serial: str) -> Byte:
    folder = capture / "masks" / shown.sequence / serial
    return read_grey(folder / f"{shown.timestep:05d}.png")
