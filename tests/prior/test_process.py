"""Programs of generators: their sentences, their meshes, and that any Python 3.10 reads them."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from eavatar.backends import PRIORS
from eavatar.io import read_mesh
from eavatar.preflight.failures import read_sentence
from eavatar.prior.generated import PROGRAMS
from eavatar.prior.generators.process import (
    Generator,
    Surface,
    describe_surface,
    encode_ply,
    main,
)

BOX = trimesh.creation.box([1, 2, 3])
GENERATORS = {name: backend for name, backend in PRIORS.items() if backend.generator}
PROVIDED = {"numpy", "PIL", "torch", "process", "trellis", "hy3dgen"}  # by the environments


def surface(vertices: Any = BOX.vertices, faces: Any = BOX.faces) -> Surface:
    return Surface(np.asarray(vertices, float), np.asarray(faces, int).reshape(-1, 3))


def write_request(folder: Path) -> None:
    """Of one image."""
    Image.new("RGBA", (8, 8)).save(folder / "front.png")
    request = {
        "source": "trellis",
        "weights": "models/some",
        "views": [{"name": "front", "image": "front.png"}],
    }
    (folder / "request.json").write_text(json.dumps(request))


def call(folder: Path, make: Callable[..., Surface], load: Callable[..., Any] = print) -> int:
    """A program's call; the exit status."""
    generator = Generator("Some", "envs/some.yaml", ("json",), 16, load, make)
    places = {"request": "request.json", "mesh": "made.ply", "record": "made.json"}
    return main(generator, [f"--{name}={folder / file}" for name, file in places.items()])


def test_a_mesh_and_its_record_are_written(tmp_path: Path) -> None:
    assert run(tmp_path, lambda model, request, images: surface()) == 0
    made = read_mesh(tmp_path / "made.ply")
    np.testing.assert_allclose(made.vertices, BOX.vertices)
    np.testing.assert_array_equal(made.faces, BOX.faces)
    record = json.loads((tmp_path / "made.json").read_text())
    assert record["asked"]["weights"] == "models/some"
    assert record["mesh"]["watertight"] and record["mesh"]["faces"] == 12
    assert record["run"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert record["run"]["seconds"] >= 0


def run(folder: Path, make: Callable[..., Surface], load: Callable[..., Any] = print) -> int:
    """The same with a request."""
    write_request(folder)
    return call(folder, make, load)


def raises(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("make", "load", "sentence"),
    [
        (lambda *_: surface(np.empty((0, 3)), []), print, "no mesh: it is empty"),
        (lambda *_: surface(faces=[]), print, "no mesh: it is empty"),
        (lambda *_: surface(BOX.vertices * np.nan), print, "8 of its 8 vertices are not finite"),
        (lambda *_: surface(faces=[[0, 1, 9]]), print, "its faces name vertices that are not"),
        (raises(torch.cuda.OutOfMemoryError("tried 9 GiB")), print, "GPU memory ran out; 16 GiB"),
        (raises(RuntimeError("CUDA error: out of memory")), print, "choose another GPU with CUDA_"),
        (print, raises(FileNotFoundError("ckpts/a.json")), "the weights in models/some cannot be"),
        (print, raises(RuntimeError("CUDA out of memory")), "GPU memory ran out"),
    ],
)
def test_what_fails_is_one_sentence_that_names_a_way_on(
    make: Callable[..., Any],
    load: Callable[..., Any],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path, make, load) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("eavatar run-generator: ") and sentence in last
    assert last.endswith("or set prior.generate.source to template.")
    assert not (tmp_path / "made.ply").exists() and not (tmp_path / "made.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_a_failure_without_a_gpu_says_that_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, raises(NotImplementedError("no CPU kernel"))) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed  # for a report; the sentence is below
    assert "it stopped (NotImplementedError: no CPU kernel) without a GPU" in printed


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:45])  # of its pixels the first few bytes


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("request.json", Path.unlink),
        ("request.json", lambda path: path.write_text('{"views": ')),
        ("request.json", lambda path: path.write_text("[]")),
        ("front.png", Path.unlink),
        ("front.png", cut_off),
        ("front.png", lambda path: path.write_text("no image")),
    ],
)
def test_a_request_that_cannot_be_read_is_one_sentence(
    file: str, damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_request(tmp_path)
    damage(tmp_path / file)
    assert call(tmp_path, lambda *_: surface()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        f"eavatar run-generator: the request {tmp_path / 'request.json'}, or an image"
    )
    assert line.endswith("; run prepare-prior again.")


def test_the_list_of_failures_repeats_the_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one without a traceback, which a job that was killed does not leave either."""
    assert call(tmp_path, lambda *_: surface()) == 2
    log = tmp_path / "run_generator.log"
    log.write_text(capsys.readouterr().err)
    assert read_sentence(log).startswith("the request ")


def test_a_call_without_files_says_which_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    generator = Generator("Some", "envs/some.yaml", ("json",), 16, print, print)
    with pytest.raises(SystemExit):
        main(generator, ["--request", "request.json"])
    assert "--request, --mesh and --record are needed" in capsys.readouterr().err


@pytest.mark.parametrize("name", GENERATORS)
def test_an_interpreter_without_the_packages_says_which_is_missing(name: str) -> None:
    """The program itself, started by an interpreter that is not its environment's: ours."""
    program = GENERATORS[name].generator.program
    done = subprocess.run([sys.executable, program, "--probe"], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"cannot be imported by {sys.executable} (No module named" in done.stderr
    assert f"make the environment of envs/{name}.yaml anew" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted(PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_a_program_needs_python_3_10_and_its_own_environment_only(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    nodes = list(ast.walk(tree))
    names = [part.name for node in nodes if isinstance(node, ast.Import) for part in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    roots = {name.partition(".")[0] for name in names}
    assert roots <= PROVIDED | set(sys.stdlib_module_names)


PROGRAM = """
import sys
from process import Generator, main

sys.exit(main(Generator("Some", "envs/some.yaml", ("package",), 16, print, print)))
"""
HANGS = """
import os, subprocess

helper = subprocess.Popen(["sleep", "600"])  # as a compiler that the generator starts
print(os.getpid(), helper.pid, flush=True)
helper.wait()
"""


def start(folder: Path, minutes: float, package: str) -> subprocess.Popen[str]:
    """A generator with a package of that source, as the rule runs it."""
    (folder / "run_some.py").write_text(PROGRAM)
    (folder / "package.py").write_text(package)
    words = ["--request=request.json", "--mesh=made.ply", "--record=made.json"]
    return subprocess.Popen(
        [sys.executable, "run_some.py", *words, f"--minutes={minutes}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROGRAMS)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("asked", [False, True], ids=["with its time", "with a signal"])
def test_a_generator_that_hangs_ends_with_all_that_it_has_started(
    asked: bool, tmp_path: Path
) -> None:
    # 12 s are ten times what an idle machine needs until the package hangs.
    process = start(tmp_path, 10 if asked else 0.2, HANGS)
    assert process.stdout is not None
    started = [int(word) for word in process.stdout.readline().split()]
    assert len(started) == 2 and all(map(runs, started))
    if asked:
        process.terminate()
    _, told = process.communicate(timeout=120)
    deadline = time.monotonic() + 10  # killed, and waited for by whoever inherits it
    while any(map(runs, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, started))
    if asked:
        assert (process.returncode, told) == (128 + signal.SIGTERM, "")
        return
    assert process.returncode == 2
    sentence = told.strip()
    assert sentence.startswith("eavatar run-generator: there was no mesh within 0.2 minutes")
    assert "run_generator:runtime=0.4), or set prior.generate.source" in sentence


def test_within_its_time_a_generator_has_its_own_status_and_sentence(tmp_path: Path) -> None:
    process = start(tmp_path, 10, "raise RuntimeError('no driver')")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2
    assert told.startswith("eavatar run-generator: package cannot be imported")
    assert "no driver" in told and len(told.splitlines()) == 1


def test_a_mesh_with_a_hole_is_not_watertight() -> None:
    assert describe_surface(surface())["watertight"]
    assert not describe_surface(surface(faces=BOX.faces[1:]))["watertight"]


def test_colours_are_written_with_the_mesh(tmp_path: Path) -> None:
    colours = np.linspace(-0.1, 1.1, 24).reshape(8, 3)  # networks leave the range
    whole = Surface(BOX.vertices, BOX.faces, colours)
    (tmp_path / "a.ply").write_bytes(encode_ply(whole))
    made = read_mesh(tmp_path / "a.ply")
    assert made.colours is not None
    np.testing.assert_allclose(made.colours, colours.clip(0, 1), atol=0.5 / 255 + 1e-6)
