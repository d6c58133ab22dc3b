"""The command line: verbs for people, and one for each rule of the workflow.

Each verb imports its own stage only. A `UserError` becomes one sentence and exit status 2; a
training that a signal has stopped likewise, and 75.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import Any

from eavatar import __version__, device, settings, threads
from eavatar.errors import Interrupted, UserError, explain_refusal

Arguments = argparse.Namespace


def demo_capture(a: Arguments) -> None:
    """Generate the embedded subject as a raw NeRSemble v2 capture."""
    from eavatar.demo.capture import demo_capture as run

    run(settings.parse_block(settings.DemoSettings, a.settings), a.seed, a.raw, a.truth)


def check(a: Arguments) -> None:
    """Check all inputs of a subject before anything long runs."""
    from eavatar.preflight.check import Inputs, InputSettings
    from eavatar.preflight.check import check as run
    from eavatar.preflight.generators import Deployment

    blocks = InputSettings(
        settings.parse_block(settings.IngestSettings, a.settings),
        settings.parse_block(settings.MatteSettings, a.matte_settings),
        settings.parse_block(settings.LandmarkSettings, a.landmark_settings),
        settings.parse_block(settings.GenerateSettings, a.prior_settings),
        settings.parse_head_scale(a.head_scale),
    )
    inputs = Inputs(a.capture, a.landmarks, a.mattes, a.mesh)
    backbones = settings.parse_backbones(a.backbones)
    prior_run = settings.parse_block(settings.PriorRunSettings, a.prior_run_settings)
    deployment = Deployment(prior_run, a.use_conda)
    run(blocks, inputs, a.morphable_model, backbones, deployment, a.covered, a.output)


def choose_sequences(a: Arguments) -> None:
    """Write which sequences are trained on and which are held out."""
    from eavatar.io import Sequences, write_sequences

    write_sequences(a.output, Sequences(tuple(a.train), tuple(a.test)))


def calibrate(a: Arguments) -> None:
    """Write the cameras, plates and sensor masks that all sequences share."""
    from eavatar.capture.ingest import calibrate as run

    run(settings.parse_block(settings.IngestSettings, a.settings), a.capture, a.output)


def ingest(a: Arguments) -> None:
    """Decode one sequence's videos into colour-corrected, cropped frames."""
    from eavatar.capture.ingest import ingest as run

    block = settings.parse_block(settings.IngestSettings, a.settings)
    run(block, a.capture, a.sequence, a.output)


def matte(a: Arguments) -> None:
    """Separate the person from the background: masks of one sequence."""
    from eavatar.capture.matting import matte as run

    block = settings.parse_block(settings.MatteSettings, a.settings)
    crop = settings.parse_block(settings.IngestSettings, a.ingest_settings)
    if block.chosen.gpu != "unused":
        device.claim_gpus()
    run(block, crop, a.capture, a.sequence, a.mattes, a.output)


def detect_landmarks(a: Arguments) -> None:
    """Find the 68 landmarks in every frame of one sequence."""
    from eavatar.face.landmarks import detect_landmarks as run

    block = settings.parse_block(settings.LandmarkSettings, a.settings)
    crop = settings.parse_block(settings.IngestSettings, a.ingest_settings)
    if block.chosen.gpu != "unused":
        device.claim_gpus()
    run(block, crop, a.capture, a.sequence, a.landmarks, a.output)


def fit_face(a: Arguments) -> None:
    """Fit the morphable model to the landmarks of all sequences and cameras."""
    from eavatar.face.fit import fit_face as run

    block = settings.parse_block(settings.FitSettings, a.settings)
    run(block, a.morphable_model, a.capture, [Path(path) for path in a.landmarks], a.output)


def refine_face(a: Arguments) -> None:
    """Refine the fit by the colours of all views."""
    from eavatar.face.refine import refine_face as run

    block = settings.parse_block(settings.RefineSettings, a.settings)
    run(block, a.morphable_model, a.capture, a.fit, a.output)


def measure_gaze(a: Arguments) -> None:
    """Measure where the tracked eyes look."""
    from eavatar.face.gaze import measure_gaze as run

    block = settings.parse_block(settings.GazeSettings, a.settings)
    run(block, a.morphable_model, a.capture, a.face, a.output)


def measure_appearance(a: Arguments) -> None:
    """Measure what the tracked eyes, brows and mouth look like."""
    from eavatar.face.appearance import measure_appearance as run

    block = settings.parse_block(settings.AppearanceSettings, a.settings)
    run(block, a.morphable_model, a.capture, a.face, a.output)


def prepare_prior(a: Arguments) -> None:
    """Cut out the images that a generator is shown, and write what it is asked."""
    from eavatar.prior.request import prepare_prior as run

    block = settings.parse_block(settings.GenerateSettings, a.settings)
    run(block, a.capture, a.face, a.output)


def generate_prior(a: Arguments) -> None:
    """Make a complete head mesh, or take one that is given."""
    from eavatar.prior.generate import generate_prior as run

    block = settings.parse_block(settings.GenerateSettings, a.settings)
    run(block, a.identity, a.neutral, a.mesh, a.output)


def align_prior(a: Arguments) -> None:
    """Bring the prior mesh into canonical space by the fitted face and the masks."""
    from eavatar.prior.align import align_prior as run

    block = settings.parse_block(settings.AlignSettings, a.settings)
    run(block, a.seed, a.raw, a.capture, a.face, a.output)


def train_sdf(a: Arguments) -> None:
    """Stage I: train the signed distance field, deformation and colour."""
    from eavatar.sdf.train import train_sdf as run

    block = settings.parse_training(settings.SdfSettings, a.settings, a.run_settings)
    run(block, a.seed, a.capture, a.face, a.prior, a.alignment, a.output, a.held_out_cameras)


def train_splat(a: Arguments) -> None:
    """Stage II: train the dynamic Gaussians."""
    from eavatar.splat.train import train_splat as run

    block = settings.parse_training(settings.SplatSettings, a.settings, a.run_settings)
    run(block, a.seed, a.capture, a.face, a.sdf, a.output, a.held_out_cameras)


def train_nerface(a: Arguments) -> None:
    """Train the baseline NeRFace."""
    from eavatar.baselines.nerface import train_nerface as run

    block = settings.parse_training(settings.NerfaceSettings, a.settings, a.run_settings)
    run(block, a.seed, a.capture, a.face, a.output, a.held_out_cameras)


def train_havatar(a: Arguments) -> None:
    """Train the baseline HAvatar."""
    from eavatar.baselines.conditions import DeformingMesh
    from eavatar.baselines.havatar_training import train_havatar as run
    from eavatar.face.morphable import read_morphable_model
    from eavatar.io import read_mesh

    block = settings.parse_training(settings.HavatarSettings, a.settings, a.run_settings)
    model = read_morphable_model(a.morphable_model)
    neutral = read_mesh(a.face / "neutral.ply").vertices
    mesh = DeformingMesh(neutral, model.expression_basis, model.faces)
    run(block, a.seed, mesh, a.capture, a.face, a.output, a.held_out_cameras)


def evaluate(a: Arguments) -> None:
    """Draw the held-out frames with a method and measure each image."""
    from eavatar.tables.evaluate import evaluate as run

    block = settings.parse_block(settings.EvaluateSettings, a.settings)
    run(block, a.method, a.source, a.capture, a.face, a.output, a.held_out_cameras)


def floors(a: Arguments) -> None:
    """Measure the floors: mean images and nearest training frames."""
    from eavatar.tables.floors import floors as run

    block = settings.parse_block(settings.EvaluateSettings, a.settings)
    run(block, a.image_size, a.capture, a.face, a.output)


def metrics(a: Arguments) -> None:
    """Average the per-image metrics of some variants into the subject's table."""
    from eavatar.tables.table import metrics as run

    if len(a.variant) != len(a.images):
        raise UserError("--variant and --images need as many words; each table is of one variant.")
    run(a.subject, dict(zip(a.variant, map(Path, a.images), strict=True)), a.output)


def measure_speed(a: Arguments) -> None:
    """Measure how fast a method draws, beside the time that it trained."""
    from eavatar.view.speed import measure_speed as run

    benchmarks = [Path(path) for path in a.benchmarks]
    run(a.method, a.source, a.log, a.tracking, a.cameras, benchmarks, a.output)


def paper_table(a: Arguments) -> None:
    """Write one of the paper's tables: measured and published values."""
    from eavatar.tables.layout import Layout
    from eavatar.tables.paper import paper_table as run

    layout = settings.parse_block(Layout, a.layout)
    run(a.table, layout, [Path(path) for path in a.measured], a.output)


def paper_figure(a: Arguments) -> None:
    """Draw one of the paper's figures of a subject: truth and variants side by side."""
    from eavatar.tables.figures import paper_figure as run
    from eavatar.tables.layout import FigureLayout

    layout = settings.parse_block(FigureLayout, a.layout)
    run(layout, [Path(path) for path in a.sources], a.cameras, a.tracking, a.output)


def reenact(a: Arguments) -> None:
    """Move an avatar by another person's sequence, or by a driver: a video and a contact sheet.

    eavatar reenact --results results/074 --driver driver --sequence clip --output driven.mp4
    eavatar reenact --results results/074 --driver results/104 --sequence FREE --output driven.mp4
    """
    from eavatar.view.reenact import reenact as run

    avatars = [Path(folder) for folder in a.avatars]
    smoothing = 0.0 if a.smoothing is None else a.smoothing
    run(a.results, avatars, a.driver, a.sequence, smoothing, a.freeze_gaze, a.output)


def report(a: Arguments) -> None:
    """Write the subject's report page."""
    from eavatar.tables.report import report as run

    videos = [Path(path) for path in a.reenactments]
    run(a.subject, a.variant, a.results, a.output, a.generation, videos)


def overview(a: Arguments) -> None:
    """Write the page on all subjects and variants."""
    from eavatar.io import read_failures
    from eavatar.tables.overview import overview as run

    if len(a.results) != len(a.shown):
        raise UserError("--results and --shown need as many words; each variant is of one subject.")
    failures = read_failures(a.failures) if a.failures else []
    run(dict(zip(map(Path, a.results), a.shown, strict=True)), a.output, failures)


def doctor(a: Arguments) -> None:
    """Check everything that a run will need, of all or some subjects, and list all faults.

    eavatar doctor
    eavatar doctor 074 075
    """
    from eavatar.preflight.doctor import doctor as run

    run(a.config or "config/config.yaml", a.subjects, a.subject, a.use_conda)


def estimate(a: Arguments) -> None:
    """Predict jobs, hours, disk and money of a run, of all or some subjects.

    eavatar estimate
    eavatar estimate 074 075 --reference results/demo --gpu-hour 2.5
    """
    from eavatar.preflight.estimate import estimate as run

    config = a.config or "config/config.yaml"
    run(config, a.subjects, a.subject, a.reference, a.gpu_hour)


def provenance(a: Arguments) -> None:
    """Show by which code, from what, with which settings, where and when results were made.

    eavatar provenance results/074
    """
    import yaml

    from eavatar.provenance import find_records

    for path, record in find_records(a.results).items():
        print(yaml.safe_dump({str(path): asdict(record)}, sort_keys=False, width=100))


def unpack_weights(a: Arguments) -> None:
    """Extract MediaPipe's networks from its wheel, for the backends mediapipe and selfie.

    pip download --no-deps mediapipe==0.10.21
    eavatar unpack-weights mediapipe-0.10.21-*.whl
    """
    from eavatar.mediapipe_weights import FOLDER
    from eavatar.mediapipe_weights import unpack_weights as run

    run(a.source, a.output or FOLDER)


def render(a: Arguments) -> None:
    """Draw a tracked sequence with a trained avatar: a video or images.

    eavatar render results/074 --sequence FREE
    eavatar render results/074 --sequence FREE --camera 222200037 --neutral --output calm.mp4
    eavatar render results/074 --sequence EMO-1-shout+laugh --camera '*' --output images
    """
    from eavatar.view.player import RATE, RenderOptions
    from eavatar.view.player import render as run

    rate = RATE if a.rate is None else a.rate
    options = RenderOptions(a.variant, a.camera, a.neutral, rate, a.output)
    run(a.results, a.sequence, options)


def view(a: Arguments) -> None:
    """Look at a trained avatar in the browser: turn it around, play sequences, pull sliders.

    eavatar view results/074
    eavatar view results/074 --port 8090
    """
    from eavatar.view.browser import HOST, PORT
    from eavatar.view.browser import view as run

    run(a.results, a.variant, a.host or HOST, PORT if a.port is None else a.port)


def track_video(a: Arguments) -> None:
    """Track the face in one ordinary video: a driver for `reenact`.

    eavatar track-video clip.mp4 --morphable-model models/bfm.h5 --output driver
    eavatar track-video clip.mp4 --morphable-model models/bfm.h5 --focal 1400 --output driver
    """
    from eavatar.view.track_video import track_video as run

    config = settings.read_config(*map(Path, a.config or ["config/config.yaml"]))
    if config.face.landmarks.chosen.gpu != "unused" and a.landmarks is None:
        device.claim_gpus()
    run(config, a.video, a.morphable_model, a.landmarks, a.focal, a.output)


def score(a: Arguments) -> None:
    """Compare a subject's results with ground truth, which no stage reads.

    eavatar score results/demo
    eavatar score results/074 --truth truth/074
    """
    from eavatar.view.score import score as run

    run(a.results, a.truth, a.variant)


def export(a: Arguments) -> None:
    """Write Gaussians, mesh or tracking for other programs.

    eavatar export results/074 --format gaussians.ply --output neutral.ply
    eavatar export results/074 --format mesh.glb --sequence FREE --output free.glb
    eavatar export results/074 --format gaussians.spz --sequence FREE --timestep 12 --output 12.spz
    """
    from eavatar.interop.export import ExportOptions
    from eavatar.interop.export import export as run

    asked = (a.variant, a.sequence, a.timestep, a.world, a.unfiltered, a.fine_tune)
    run(a.results, ExportOptions(a.format, a.output, *asked))


def export_gha(a: Arguments) -> None:
    """Write a subject in the layout that Gaussian Head Avatar's code trains on.

    eavatar export-gha results/074 --morphable-model models/model2017-1_face12_nomouth.h5
    """
    from eavatar.interop.gha import export_gha as run

    run(a.results, a.morphable_model, a.output)


def export_benchmark(a: Arguments) -> None:
    """Write the submission for novel views of the NeRSemble benchmark.

    eavatar export-benchmark results/388 results/475 --download nersemble_benchmark
    """
    from eavatar.interop.benchmark import export_benchmark as run

    run([Path(folder) for folder in a.results], a.download, a.variant, a.output)


def import_rig(a: Arguments) -> None:
    """Import a rig's calibration from COLMAP, nerfstudio, OpenCV or RenderMe-360.

    eavatar import-rig sparse/0 --format colmap --metres-per-unit 0.37 --output my_rig
    eavatar import-rig RenderMe-360/0026 --format renderme --output captures/0026
    """
    from eavatar.interop.rigs import import_rig as run

    unit = 1.0 if a.metres_per_unit is None else a.metres_per_unit
    run(a.format, a.source, unit, a.output)


def find_crops(a: Arguments) -> None:
    """Find the portrait crop of each camera of a rig, from landmarks in its whole images.

    eavatar find-crops my_rig
    eavatar find-crops my_rig --landmarks my_landmarks
    """
    from eavatar.interop.crops import find_crops as run

    config = settings.read_config(*map(Path, a.config or ["config/config.yaml"]))
    backend = config.face.landmarks
    if a.landmarks is not None:
        backend = settings.LandmarkSettings(backend="provided")
    elif backend.chosen.gpu != "unused":
        device.claim_gpus()
    run(backend, a.landmarks, a.capture)


def export_page(a: Arguments) -> None:
    """Write an avatar as one page for any browser, with sliders and a played sequence.

    eavatar export-page results/074
    eavatar export-page results/074 --sequence EXP-1-head --components 40 --output avatar.html
    """
    from eavatar.view.page import PageOptions
    from eavatar.view.page import export_page as run
    from eavatar.view.player import RATE

    rate = RATE if a.rate is None else a.rate
    run(a.results, PageOptions(a.variant, a.sequence, a.components, rate, a.output))


Verb = Callable[[Arguments], None]
Flag = tuple[str, Callable[[str], Any], str, bool]
"""Name, type, help, and whether it is required; a name without dashes is a word without a flag."""


def whole_number(least: int, limit: int | None = None) -> Callable[[str], int]:
    """The type of a flag: an integer of at least so much, and below a limit."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least or (limit is not None and number >= limit):
            below = "" if limit is None else f" and below {limit}"
            raise argparse.ArgumentTypeError(f"{number} must be at least {least}{below}")
        return number

    parse.__name__ = "int"  # as argparse tells of a word that is none
    return parse


SETTINGS: Flag = ("--settings", str, "the rule's block as JSON, or a YAML file that holds it", True)
RUN_SETTINGS: Flag = ("--run-settings", str, "its sub-block run, where that is apart", False)
INGEST: Flag = ("--ingest-settings", str, "the block capture.ingest, for the crop", True)
SEED: Flag = ("--seed", whole_number(0, settings.SEED_LIMIT), "random seed", True)
HELD_OUT: Flag = ("--held-out-cameras", list, "measured and not trained on; see settings", False)
RAW: Flag = ("--capture", Path, "raw capture: the folder with calibration/ and sequences/", True)
CAPTURE: Flag = ("--capture", Path, "results/<subject>/capture", True)
FACE: Flag = ("--face", Path, "results/<subject>/face", True)
SEQUENCE: Flag = ("--sequence", str, "name of the sequence, e.g. EMO-1-shout+laugh", True)
MODEL: Flag = ("--morphable-model", Path, "a morphable model, see config/README.md", True)
LANDMARKS: Flag = ("--landmarks", Path, "folder of provided detections, <sequence>.npz", False)
MATTES: Flag = ("--mattes", Path, "folder of provided alpha videos, <sequence>/cam_*.mp4", False)
MESH: Flag = ("--mesh", Path, "a head mesh made elsewhere, .ply, .obj or .glb", False)
IDENTITY: Flag = ("--identity", Path, "face/identity.npz", True)
NEUTRAL: Flag = ("--neutral", Path, "face/neutral.ply", True)
VARIANT: Flag = ("--variant", str, "name of the variant", True)
SUBJECT: Flag = ("--subject", str, "name of the subject", True)
RESULTS: Flag = ("results", Path, "results/<subject>", True)
USE_CONDA: Flag = ("--use-conda", bool, "snakemake makes the environments of envs/", False)
CHOSEN: Flag = ("--variant", str, "which of several trained variants; full if not given", False)
SHEET: list[Flag] = [
    ("subject", list, "subjects to look at; all of the sheet if none", False),
    ("--config", str, "all settings as YAML file or JSON; else config/config.yaml", False),
    ("--subjects", Path, "sample sheet instead of the one that the settings name", False),
]


def output(what: str) -> Flag:
    return ("--output", Path, what, True)


def block(name: str, path: str) -> Flag:
    return (name, str, f"the block {path}", True)


# Verbs with small matrices: of the whole fit, and of timesteps that are solved side by side; and
# one whose principal components would have other signs with another number of threads.
ONE_BLAS_THREAD: set[Verb] = {
    demo_capture, fit_face, refine_face, measure_gaze, measure_appearance,
}  # fmt: skip
# Verbs that use a GPU, whatever their settings.
ON_GPU: set[Verb] = {
    train_sdf, train_splat, train_nerface, train_havatar, evaluate, floors, measure_speed, reenact,
    render, export, export_page, view,
}  # fmt: skip

# Verbs whose results tell how they were made, and which of their arguments are what it was made of.
RECORDED: dict[Verb, tuple[str, ...]] = {
    check: ("capture", "morphable_model", "landmarks", "mattes", "mesh"),
    train_sdf: ("capture", "face", "prior", "alignment"),
    train_splat: ("capture", "face", "sdf"),
    train_nerface: ("capture", "face"),
    train_havatar: ("morphable_model", "capture", "face"),
    evaluate: ("source", "capture", "face"),
    metrics: ("images",),
}

PEOPLE: dict[Verb, list[Flag]] = {
    doctor: [*SHEET, USE_CONDA],
    estimate: [
        *SHEET,
        ("--reference", Path, "results/<subject> of a finished run; else stored figures", False),
        ("--gpu-hour", float, "price of an hour of a GPU", False),
    ],
    provenance: [RESULTS],
    unpack_weights: [
        ("source", Path, "the wheel, or a folder that holds the networks somewhere", True),
        ("--output", Path, "a folder; models/mediapipe if not given", False),
    ],
    import_rig: [
        ("source", Path, "what the other program wrote: a folder, or transforms.json", True),
        ("--format", str, "colmap, nerfstudio, opencv or renderme", True),
        ("--metres-per-unit", float, "metres of a unit of its world; 1 if not given", False),
        output("folder of the capture; receives cameras.json"),
    ],
    find_crops: [
        ("capture", Path, "a capture in the plain layout; receives crops.json", True),
        ("--landmarks", Path, "folder of detections made elsewhere, <sequence>.npz", False),
        ("--config", list, "settings as YAML files; config/config.yaml if not given", False),
    ],
    view: [
        RESULTS,
        CHOSEN,
        ("--host", str, "address to listen at; of this machine alone, 127.0.0.1, if none", False),
        ("--port", int, "port to listen at, 8080 if not given", False),
    ],
    render: [
        RESULTS,
        SEQUENCE,
        CHOSEN,
        ("--camera", list, "serial numbers, wildcards allowed; the most frontal if none", False),
        ("--neutral", bool, "freeze the expression at neutral", False),
        ("--rate", float, "frames per second of the video, 24 if not given", False),
        (
            "--output",
            Path,
            "a video, .mp4, or a folder for images, <camera>/<timestep>.png; beside the avatar if "
            "not given",
            False,
        ),
    ],
    track_video: [
        ("video", Path, "a video of one person", True),
        MODEL,
        ("--landmarks", Path, "folder of detections made elsewhere, <video>.npz", False),
        ("--focal", float, "focal length, pixels of the upright video; else estimated", False),
        ("--config", list, "settings as YAML files; config/config.yaml if not given", False),
        output("folder for the driver, in place of an earlier one"),
    ],
    reenact: [
        ("--results", Path, "results/<subject> of the avatar", True),
        ("--avatars", list, "splat/<variant>, one or several side by side; else full", False),
        ("--driver", Path, "results/<subject> of who moves it, or a folder of track-video", True),
        ("--sequence", str, "name of the driver's sequence, e.g. EMO-1-shout+laugh", True),
        (
            "--smoothing",
            float,
            "of the head's pose, below 1, as the setting reenactment.smoothing; 0, which follows "
            "at once, if not given",
            False,
        ),
        ("--freeze-gaze", bool, "the eyes look straight, not where the driver's do", False),
        output("a video, .mp4; a contact sheet, .jpg, comes beside it"),
    ],
    export: [
        RESULTS,
        (
            "--format",
            str,
            "gaussians.ply, gaussians.spz, gaussians.glb, mesh.ply, mesh.glb, tracking.npz or "
            "tracking.csv",
            True,
        ),
        ("--sequence", str, "a tracked sequence; the neutral expression if not given", False),
        ("--timestep", int, "one of the sequence's, from 0; all if not given", False),
        ("--world", bool, "as in the capture; else canonical, the head still and upright", False),
        ("--unfiltered", bool, "Gaussians as trained; they have gaps in large images", False),
        ("--fine-tune", bool, "fit the Gaussians to the training frames first", False),
        CHOSEN,
        ("--output", Path, "a file, or a folder for a file of each timestep", True),
    ],
    export_page: [
        RESULTS,
        ("--sequence", str, "that the page plays; the first held-out one if not given", False),
        CHOSEN,
        ("--components", int, "blendshapes; if not given 20, of short captures fewer", False),
        ("--rate", float, "timesteps per second of the sequence, 24 if not given", False),
        ("--output", Path, "the page, .html; avatar.html beside the avatar if not given", False),
    ],
    export_gha: [
        RESULTS,
        ("--morphable-model", Path, "the model of the fit; GHA needs its vertices.npy", False),
        ("--output", Path, "a new folder; results/<subject>/gha if not given", False),
    ],
    export_benchmark: [
        ("results", list, "results/<participant> of each participant", True),
        ("--download", Path, "the benchmark's data, the folder that holds nvs/", True),
        CHOSEN,
        ("--output", Path, "a zip; nvs_submission.zip beside the results if not given", False),
    ],
    score: [
        RESULTS,
        ("--truth", Path, "folder of ground truth; results/<subject>/truth if not given", False),
        CHOSEN,
    ],
}

RULES: dict[Verb, list[Flag]] = {
    demo_capture: [
        SETTINGS,
        SEED,
        ("--raw", Path, "folder to write the capture to", True),
        ("--truth", Path, "folder to write the ground truth to, for `score` only", True),
    ],
    check: [
        SETTINGS,
        block("--matte-settings", "capture.matte"),
        block("--landmark-settings", "face.landmarks"),
        block("--prior-settings", "prior.generate"),
        block("--prior-run-settings", "prior.run"),
        USE_CONDA,
        ("--head-scale", str, "the setting face.fit.head_scale", True),
        ("--backbones", str, "of LPIPS, as JSON: which are used, true if one must be there", True),
        RAW,
        MODEL,
        LANDMARKS,
        MATTES,
        MESH,
        ("--covered", list, "digests of the parts that the check stands for", False),
        output("text file to write the inventory to"),
    ],
    choose_sequences: [
        ("--train", list, "names of the sequences to train on", True),
        ("--test", list, "names of those that are held out", True),
        output("capture/sequences.json"),
    ],
    calibrate: [SETTINGS, RAW, output("results/<subject>/capture")],
    ingest: [SETTINGS, RAW, SEQUENCE, output("results/<subject>/capture")],
    matte: [SETTINGS, INGEST, CAPTURE, SEQUENCE, MATTES, output("capture/masks")],
    detect_landmarks: [
        SETTINGS,
        INGEST,
        CAPTURE,
        SEQUENCE,
        LANDMARKS,
        output("face/landmarks/<sequence>.npz"),
    ],
    fit_face: [
        SETTINGS,
        MODEL,
        CAPTURE,
        ("--landmarks", list, "face/landmarks/<sequence>.npz of each sequence", True),
        output("results/<subject>/face/fit"),
    ],
    refine_face: [
        SETTINGS,
        MODEL,
        CAPTURE,
        ("--fit", Path, "face/fit", True),
        output("results/<subject>/face/refine"),
    ],
    measure_gaze: [
        SETTINGS,
        MODEL,
        CAPTURE,
        ("--face", Path, "face/refine", True),
        output("results/<subject>/face/gaze"),
    ],
    measure_appearance: [
        SETTINGS,
        MODEL,
        CAPTURE,
        ("--face", Path, "face/gaze", True),
        output("results/<subject>/face"),
    ],
    prepare_prior: [SETTINGS, CAPTURE, FACE, output("results/<subject>/prior")],
    generate_prior: [SETTINGS, IDENTITY, NEUTRAL, MESH, output("prior/raw.ply")],
    align_prior: [
        SETTINGS,
        SEED,
        ("--raw", Path, "prior/raw.ply", True),
        CAPTURE,
        FACE,
        output("results/<subject>/prior"),
    ],
    train_sdf: [
        SETTINGS,
        RUN_SETTINGS,
        SEED,
        CAPTURE,
        FACE,
        HELD_OUT,
        ("--prior", Path, "prior/aligned.ply", True),
        ("--alignment", Path, "prior/alignment.json", True),
        output("sdf/<variant>"),
    ],
    train_splat: [
        SETTINGS,
        RUN_SETTINGS,
        SEED,
        CAPTURE,
        FACE,
        HELD_OUT,
        ("--sdf", Path, "sdf/<variant>", True),
        output("splat/<variant>"),
    ],
    train_nerface: [
        SETTINGS,
        RUN_SETTINGS,
        SEED,
        CAPTURE,
        FACE,
        HELD_OUT,
        output("nerface/<variant>"),
    ],
    train_havatar: [
        SETTINGS,
        RUN_SETTINGS,
        SEED,
        MODEL,
        CAPTURE,
        FACE,
        HELD_OUT,
        output("havatar/<variant>"),
    ],
    evaluate: [
        SETTINGS,
        CAPTURE,
        FACE,
        HELD_OUT,
        ("--method", str, "avatar, nerface, havatar, or images that another code rendered", True),
        ("--source", Path, "<stage>/<variant> of the model, or the folder of images", True),
        output("tables/<variant>"),
    ],
    floors: [
        SETTINGS,
        CAPTURE,
        FACE,
        ("--image-size", whole_number(settings.MIN_FRAME), "side of the images, pixels", True),
        output("tables/floors.csv"),
    ],
    metrics: [
        SUBJECT,
        ("--variant", list, "names of the variants, and what tables/floors.csv is called", True),
        ("--images", list, "tables/<variant>/images.csv of each of them", True),
        ("--settings", str, "all of the subject's, for its provenance", False),
        output("metrics.csv; regions.csv is written beside it"),
    ],
    measure_speed: [
        ("--method", str, "avatar, nerface or havatar", True),
        ("--source", Path, "the folder of its model, such as splat/<variant>", True),
        ("--log", Path, "log.csv of its training", True),
        ("--tracking", Path, "face/tracking/<sequence>.npz", True),
        ("--cameras", Path, "capture/cameras.json", True),
        ("--benchmarks", list, "Snakemake's of all that trained the model", False),
        output("tables/<variant>/speed.json"),
    ],
    paper_table: [
        ("--table", str, "table1 to table5", True),
        ("--layout", str, "what it shows: an entry of config/tables.yaml, as JSON or YAML", True),
        ("--measured", list, "tables/<variant>/images.csv or speed.json of all subjects", False),
        output("folder for <table>.csv, .md and .tex"),
    ],
    paper_figure: [
        ("--layout", str, "what it shows: a figure of config/tables.yaml, as JSON or YAML", True),
        ("--sources", list, "tables/<variant>/pictures or sdf/<variant>/surfaces", True),
        ("--cameras", Path, "capture/cameras.json", True),
        ("--tracking", Path, "face/tracking", True),
        output("results/figures/<figure>_<subject>.png"),
    ],
    report: [
        SUBJECT,
        VARIANT,
        ("--results", Path, "results/<subject>", True),
        ("--generation", Path, "prior/generation.json, where a generator made the prior", False),
        ("--reenactments", list, "videos of `reenact` with the avatar; sheets beside them", False),
        output("report.html"),
    ],
    overview: [
        ("--results", list, "results/<subject> of each subject that is complete", False),
        ("--shown", list, "variants of which an image is shown, one of each subject", False),
        ("--failures", Path, "results/failed.csv, if a run has left one", False),
        output("results/overview.html"),
    ],
}


def add_flag(verb: argparse.ArgumentParser, flag: Flag) -> None:
    """A switch, several words, or one value of the flag's type."""
    name, kind, text, required = flag
    options: dict[str, Any] = {"help": text}
    if name.startswith("--"):
        options["required"] = required
    if kind is bool:
        options["action"] = "store_true"
    elif kind is list:
        options |= {"nargs": "+" if name.startswith("--") else "*", "default": []}
    else:
        options["type"] = kind
    verb.add_argument(name, **options)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs, those for people first."""
    parser = argparse.ArgumentParser(
        prog="eavatar",
        description="Expression-aware head avatars from multi-view video.",
        epilog=(
            f"verbs for people; `eavatar <verb> --help` shows examples:\n{_listed(PEOPLE)}\n\n"
            "verbs for the rules of the workflow, which runs them in order and where needed\n"
            "(snakemake --cores all results/<subject>/metrics.csv):\n"
            f"{_listed(RULES)}\n\n"
            "OMP_NUM_THREADS limits the threads of a verb, all cores otherwise; Snakemake sets it."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb", help="see below")
    for function, flags in (PEOPLE | RULES).items():
        summary, examples = _explained(function)
        verb = verbs.add_parser(
            _spelt(function),
            description=summary,
            epilog=examples and f"examples:\n{indent(examples, '  ')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(function=function)
        for flag in flags:
            add_flag(verb, flag)
    return parser


def _spelt(function: Verb) -> str:
    return function.__name__.replace("_", "-")


def _explained(verb: Verb) -> tuple[str, str]:
    """The summary of a verb, and its examples if it has any."""
    summary, _, examples = (inspect.getdoc(verb) or "").partition("\n\n")
    return summary, examples


def _listed(verbs: Iterable[Verb]) -> str:
    """A line on each verb."""
    return "\n".join(f"  {_spelt(verb):17} {_explained(verb)[0]}" for verb in verbs)


def gpus_of(a: Arguments) -> int:
    """How many GPUs a verb uses, as far as that is known before it runs."""
    if a.function is train_splat:
        block = settings.parse_training(settings.SplatSettings, a.settings, a.run_settings)
        return block.run.gpus
    return int(a.function in ON_GPU)


def run(a: Arguments) -> None:
    """Call the verb, and write down how its result was made where that is kept."""
    if a.function not in RECORDED or device.place()[0] > 0:
        a.function(a)
        return
    from eavatar.provenance import recorded

    names = RECORDED[a.function]
    given = [getattr(a, name) for name in names if getattr(a, name)]
    words = [str(word) for each in given for word in (each if isinstance(each, list) else [each])]
    apart = {*names, "function", "verb", "output"}
    arguments = {name: value for name, value in vars(a).items() if value and name not in apart}
    with recorded(a.verb, __version__, arguments, words, a.output):
        a.function(a)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        # Before the verb imports what makes threads.
        threads.set_environment(one_for_blas=parsed.function in ONE_BLAS_THREAD)
        count = gpus_of(parsed)
        device.claim_gpus(count)
        if count > 1 and not device.is_launched():
            from eavatar.training.parallel import launch

            return launch(sys.argv[1:] if arguments is None else arguments, count)
        run(parsed)
    except Interrupted as error:
        print(f"eavatar {parsed.verb}: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except (UserError, OSError) as error:
        sentence = error if isinstance(error, UserError) else explain_refusal(error)
        if sentence is None:
            raise
        print(f"eavatar {parsed.verb.replace('_', '-')}: {sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
