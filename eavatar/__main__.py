"""The command line: one verb for each rule of the workflow, `python -m eavatar <verb> --help`.

Each verb imports its own stage only. A `UserError` becomes one sentence and exit status 2.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eavatar import __version__, settings, threads
from eavatar.errors import UserError

Arguments = argparse.Namespace


def demo_capture(a: Arguments) -> None:
    """Generate the embedded subject as a raw NeRSemble v2 capture."""
    from eavatar.demo.capture import demo_capture as run

    run(settings.parse_block(settings.DemoSettings, a.settings), a.seed, a.raw, a.truth)


def doctor(a: Arguments) -> None:
    """Check everything that a run will need, of all or some subjects, and list all faults."""
    from eavatar.preflight.doctor import doctor as run

    run(a.config or "config/config.yaml", a.subjects, a.subject)


def check(a: Arguments) -> None:
    """Check all inputs of a subject before anything long runs."""
    from eavatar.preflight.check import Inputs, InputSettings
    from eavatar.preflight.check import check as run

    blocks = InputSettings(
        settings.parse_block(settings.IngestSettings, a.settings),
        settings.parse_block(settings.MatteSettings, a.matte_settings),
        settings.parse_block(settings.LandmarkSettings, a.landmark_settings),
        settings.parse_block(settings.GenerateSettings, a.prior_settings),
    )
    inputs = Inputs(a.capture, a.landmarks, a.mattes, a.mesh)
    run(blocks, inputs, a.morphable_model, a.output)


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
    """Separate the person from the background: alpha masks of one sequence."""
    from eavatar.capture.matting import matte as run

    block = settings.parse_block(settings.MatteSettings, a.settings)
    crop = settings.parse_block(settings.IngestSettings, a.ingest_settings)
    run(block, crop, a.capture, a.sequence, a.mattes, a.output)


def detect_landmarks(a: Arguments) -> None:
    """Find the 68 landmarks in every frame of one sequence."""
    from eavatar.face.landmarks import detect_landmarks as run

    block = settings.parse_block(settings.LandmarkSettings, a.settings)
    crop = settings.parse_block(settings.IngestSettings, a.ingest_settings)
    run(block, crop, a.capture, a.sequence, a.landmarks, a.output)


def fit_face(a: Arguments) -> None:
    """Fit the morphable model to the landmarks of all sequences and cameras."""
    from eavatar.face.fit import fit_face as run

    block = settings.parse_block(settings.FitSettings, a.settings)
    run(block, a.morphable_model, a.capture, a.landmarks, a.output)


def refine_face(a: Arguments) -> None:
    """Refine the fit by the colours of all views."""
    from eavatar.face.refine import refine_face as run

    block = settings.parse_block(settings.RefineSettings, a.settings)
    run(block, a.morphable_model, a.capture, a.fit, a.output)


def generate_prior(a: Arguments) -> None:
    """Make or take over a complete head mesh."""
    from eavatar.prior.generate import generate_prior as run

    block = settings.parse_block(settings.GenerateSettings, a.settings)
    run(block, a.identity, a.neutral, a.mesh, a.output)


def align_prior(a: Arguments) -> None:
    """Bring the prior mesh into canonical space by similarity ICP."""
    from eavatar.prior.align import align_prior as run

    block = settings.parse_block(settings.AlignSettings, a.settings)
    run(block, a.seed, a.raw, a.identity, a.neutral, a.output)


def train_sdf(a: Arguments) -> None:
    """Stage I: train the signed distance field, deformation and colour."""
    from eavatar.sdf.train import train_sdf as run

    block = settings.parse_training(settings.SdfSettings, a.settings, a.run_settings)
    run(block, a.seed, a.capture, a.face, a.prior, a.output)


def train_splat(a: Arguments) -> None:
    """Stage II: train the dynamic Gaussians."""
    from eavatar.splat.train import train_splat as run

    block = settings.parse_training(settings.SplatSettings, a.settings, a.run_settings)
    run(block, a.seed, a.capture, a.face, a.sdf, a.output)


def evaluate(a: Arguments) -> None:
    """Draw the held-out frames with a method and measure each image."""
    from eavatar.tables.evaluate import evaluate as run

    block = settings.parse_block(settings.EvaluateSettings, a.settings)
    run(block, a.method, a.source, a.capture, a.face, a.output)


def metrics(a: Arguments) -> None:
    """Average the per-image metrics of some variants into the subject's table."""
    from eavatar.tables.table import metrics as run

    if len(a.variant) != len(a.images):
        raise UserError("--variant and --images need as many words; each table is of one variant.")
    run(a.subject, dict(zip(a.variant, map(Path, a.images), strict=True)), a.output)


def report(a: Arguments) -> None:
    """Write the subject's report page."""
    from eavatar.tables.report import report as run

    run(a.subject, a.variant, a.results, a.output)


def score(a: Arguments) -> None:
    """Compare a subject's results with ground truth (the demo has it; no stage reads it)."""
    from eavatar.view.score import score as run

    run(a.results, a.truth, a.capture)


def render(a: Arguments) -> None:
    """Draw a tracked sequence with a trained avatar: a film or pictures."""
    from eavatar.view.player import RATE
    from eavatar.view.player import render as run

    rate = RATE if a.rate is None else a.rate
    run(a.avatar, a.capture, a.face, a.sequence, a.camera, a.neutral, rate, a.output)


def export_gha(a: Arguments) -> None:
    """Write a subject in the layout that Gaussian Head Avatar's code trains on."""
    from eavatar.interop.gha import export_gha as run

    run(a.capture, a.face, a.morphable_model, a.output)


Flag = tuple[str, type, str, bool]
"""Name, type, help and whether it is required; a tuple is any number of words without a flag."""
SETTINGS: Flag = ("settings", str, "the rule's block as JSON, or a YAML file that holds it", True)
RUN_SETTINGS: Flag = ("run-settings", str, "its sub-block run, where that is apart", False)
INGEST: Flag = ("ingest-settings", str, "the block capture.ingest, for the crop", True)
SEED: Flag = ("seed", int, "random seed", True)
RAW: Flag = ("capture", Path, "raw capture: the folder with calibration/ and sequences/", True)
CAPTURE: Flag = ("capture", Path, "results/<subject>/capture", True)
FACE: Flag = ("face", Path, "results/<subject>/face", True)
SEQUENCE: Flag = ("sequence", str, "name of the sequence, e.g. EMO-1-shout+laugh", True)
MODEL: Flag = ("morphable-model", Path, "BFM 2017 .h5 or BFM09_model_info.mat", True)
LANDMARKS: Flag = ("landmarks", Path, "folder of provided detections, <sequence>.npz", False)
MATTES: Flag = ("mattes", Path, "folder of provided alpha videos, <sequence>/cam_*.mp4", False)
MESH: Flag = ("mesh", Path, "a head mesh made elsewhere, .ply, .obj or .glb", False)
IDENTITY: Flag = ("identity", Path, "face/identity.npz", True)
NEUTRAL: Flag = ("neutral", Path, "face/neutral.ply", True)
VARIANT: Flag = ("variant", str, "name of the variant", True)
SUBJECT: Flag = ("subject", str, "name of the subject", True)


def output(what: str) -> Flag:
    return ("output", Path, what, True)


def block(name: str, path: str) -> Flag:
    return (name, str, f"the block {path}", True)


VERBS: dict[Callable[[Arguments], None], list[Flag]] = {
    demo_capture: [
        SETTINGS,
        SEED,
        ("raw", Path, "folder to write the capture to", True),
        ("truth", Path, "folder to write the ground truth to, for `score` only", True),
    ],
    doctor: [
        (
            "config",
            str,
            "all settings as YAML file or JSON; config/config.yaml if not given",
            False,
        ),
        ("subjects", Path, "sample sheet instead of the one that the settings name", False),
        ("subject", tuple, "subjects to look at; all of the sheet if none", False),
    ],
    check: [
        SETTINGS,
        block("matte-settings", "capture.matte"),
        block("landmark-settings", "face.landmarks"),
        block("prior-settings", "prior.generate"),
        RAW,
        MODEL,
        LANDMARKS,
        MATTES,
        MESH,
        output("text file to write the inventory to"),
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
        ("landmarks", Path, "face/landmarks", True),
        output("results/<subject>/face"),
    ],
    refine_face: [
        SETTINGS,
        MODEL,
        CAPTURE,
        ("fit", Path, "face/fit", True),
        output("results/<subject>/face"),
    ],
    generate_prior: [SETTINGS, IDENTITY, NEUTRAL, MESH, output("prior/raw.ply")],
    align_prior: [
        SETTINGS,
        SEED,
        ("raw", Path, "prior/raw.ply", True),
        IDENTITY,
        NEUTRAL,
        output("results/<subject>/prior"),
    ],
    train_sdf: [
        SETTINGS,
        RUN_SETTINGS,
        SEED,
        CAPTURE,
        FACE,
        ("prior", Path, "prior/aligned.ply", True),
        output("sdf/<variant>"),
    ],
    train_splat: [
        SETTINGS,
        RUN_SETTINGS,
        SEED,
        CAPTURE,
        FACE,
        ("sdf", Path, "sdf/<variant>", True),
        output("splat/<variant>"),
    ],
    evaluate: [
        SETTINGS,
        CAPTURE,
        FACE,
        ("method", str, "avatar, or images that another code rendered", True),
        ("source", Path, "splat/<variant> of an avatar, or the folder of images", True),
        output("tables/<variant>"),
    ],
    metrics: [
        SUBJECT,
        ("variant", list, "names of the variants", True),
        ("images", list, "tables/<variant>/images.csv of each of them", True),
        output("metrics.csv"),
    ],
    report: [
        SUBJECT,
        VARIANT,
        ("results", Path, "results/<subject>", True),
        output("report.html"),
    ],
    score: [
        ("results", Path, "results/<subject>", True),
        ("truth", Path, "folder of ground truth, e.g. results/demo/truth", True),
        ("capture", Path, "raw capture; results/<subject>/raw if not given", False),
    ],
    render: [
        ("avatar", Path, "results/<subject>/splat/<variant>", True),
        CAPTURE,
        FACE,
        SEQUENCE,
        ("camera", list, "serial numbers, wildcards allowed; the most frontal if none", False),
        ("neutral", bool, "freeze the expression at neutral", False),
        ("rate", float, "frames per second of the film, 24 if not given", False),
        output("a film, .mp4, or a folder for pictures, <camera>/<timestep>.png"),
    ],
    export_gha: [
        CAPTURE,
        FACE,
        ("morphable-model", Path, "the model of the fit; GHA needs its vertices.npy", False),
        output("a new folder; its own frames are for training, those in held_out are not"),
    ],
}


def reading(kind: type) -> dict[str, Any]:
    """How argparse reads a flag: a switch, several words, or one value of the type."""
    if kind is bool:
        return {"action": "store_true"}
    if kind is list:
        return {"nargs": "+", "default": []}
    return {"type": kind}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs, in the order in which the workflow runs them."""
    parser = argparse.ArgumentParser(
        prog="python -m eavatar",
        description="Head avatars from multi-view video, one verb for each rule of the workflow. "
        "To run them all, in order and only where needed: snakemake --cores 8 "
        "results/<subject>/metrics.csv",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for function, flags in VERBS.items():
        summary = (function.__doc__ or "").strip()
        name = function.__name__.replace("_", "-")
        verb = verbs.add_parser(name, help=summary, description=summary)
        verb.set_defaults(function=function)
        for flag, kind, text, required in flags:
            if kind is tuple:
                verb.add_argument(flag, help=text, nargs="*")
            else:
                verb.add_argument(f"--{flag}", help=text, required=required, **reading(kind))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    threads.set_environment()  # before a verb imports what makes threads
    try:
        parsed.function(parsed)
    except UserError as error:
        print(f"eavatar {parsed.verb.replace('_', '-')}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
