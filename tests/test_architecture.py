"""The architecture that docs/architecture.md draws: what may import what, and where tests lie.

A unit is a flat module of the package or one of its folders. Imports inside functions count, and so
do names of modules in strings, which late imports use; but not those of `eavatar.backends`: it asks
folders of backends for their records without knowing what is in them.
"""

import ast
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

from docs.architecture import PICTURE, draw
from tests.scenes import ROOT

FOUNDATION = "foundation"
STAGES = "stages"
TOOLS = "tools"
LAYERS: dict[str, set[str]] = {  # from the bottom up: a unit imports lower layers, or its own unit
    FOUNDATION: {
        "errors",
        "arrays",
        "landmark_indices",
        "device",
        "threads",
        "transforms",
        "cameras",
        "conventions",
        "lenses",
        "meshes",
    }
    | {"io", "backends", "weights", "mediapipe_weights", "settings", "results", "provenance"},
    "data and drawing": {"data", "rendering"},
    "training and model": {"training", "avatar", "baselines"},
    STAGES: {"capture", "face", "prior", "sdf", "splat", "tables"},
    TOOLS: {"preflight", "view", "interop", "demo"},
    "entry": {"__init__", "__main__"},
}
APART = {STAGES, TOOLS}  # layers whose units do not import one another
FLOOR = {unit: floor for floor, units in enumerate(LAYERS.values()) for unit in units}
REGISTRY = "eavatar.backends"
MODULE = re.compile(r"eavatar(\.\w+)+(?=:\w+$|$)")

# Modules without a test file of their own name, and where their promises are tested.
TESTED_ELSEWHERE: dict[str, str] = {
    "__main__": "test_package.py",  # each verb beside its stage
    "arrays": "data/test_frames.py",  # names of types
    "avatar/model": "splat/test_splat_train.py",
    "avatar/upsamplers/gha": "avatar/test_upsample.py",
    "avatar/upsamplers/subpixel": "avatar/test_upsample.py",
    "baselines/havatar_training": "baselines/test_havatar.py",
    "baselines/plane_field": "baselines/test_havatar.py",
    "baselines/training": "baselines/test_nerface.py",
    "capture/backends/background_matting_v2": "capture/test_background_matting.py",
    "capture/backends/plate": "capture/test_matting.py",
    "capture/backends/provided": "capture/test_matting.py",
    "capture/backends/rembg": "capture/test_rembg.py",
    "capture/backends/selfie": "capture/test_selfie.py",
    "capture/backgrounds": "capture/test_matting.py",
    "capture/captures": "capture/test_layouts.py",
    "capture/plate": "capture/test_matting.py",
    "capture/recording": "capture/test_corrupt.py",
    "conventions": "capture/test_rig.py",
    "data/images": "data/test_frames.py",
    "data/loader": "data/test_frames.py",
    "data/methods": "tables/test_evaluate.py",  # types
    "demo/capture": "demo/test_demo.py",  # the ten files of the embedded subject, as a whole
    "demo/controls": "demo/test_demo.py",
    "demo/detections": "demo/test_demo.py",
    "demo/head": "demo/test_demo.py",
    "demo/look": "demo/test_demo.py",
    "demo/morphable_model": "demo/test_demo.py",
    "demo/motion": "demo/test_demo.py",
    "demo/render": "demo/test_demo.py",
    "demo/rig": "demo/test_demo.py",
    "demo/sculpt": "demo/test_demo.py",
    "face/backends/face_alignment": "face/test_landmarks.py",
    "face/backends/mediapipe": "face/test_mediapipe.py",
    "face/backends/provided": "face/test_landmarks.py",
    "face/colours": "face/test_appearance.py",
    "face/gnm": "face/test_flame.py",
    "face/model_arrays": "face/test_flame.py",
    "face/photometric": "face/test_refine.py",
    "face/pickled_arrays": "face/test_flame.py",
    "interop/avatar_splats": "interop/test_export.py",
    "interop/colmap": "interop/test_rigs.py",
    "interop/fine_tuning": "interop/test_export.py",
    "interop/glb": "interop/test_export.py",
    "interop/mesh_files": "interop/test_head_mesh.py",
    "interop/renderme": "interop/test_rigs.py",
    "interop/splat_files": "interop/test_export.py",
    "interop/tracking_files": "interop/test_export.py",
    "landmark_indices": "avatar/test_torso.py",  # constants
    "preflight/findings": "preflight/test_doctor.py",
    "preflight/machine": "preflight/test_doctor.py",
    "prior/backends/hunyuan3d": "prior/test_generated.py",
    "prior/backends/provided": "prior/test_template.py",
    "prior/backends/template": "prior/test_template.py",
    "prior/backends/trellis": "prior/test_generated.py",
    "prior/generate": "prior/test_template.py",
    "prior/generators/process": "prior/test_process.py",
    "prior/generators/run_hunyuan3d": "prior/test_process.py",
    "prior/generators/run_trellis": "prior/test_process.py",
    "prior/template_fit": "prior/test_template.py",
    "rendering/cpu": "rendering/test_splatting.py",
    "results": "test_api.py",
    "sdf/cut_finder": "sdf/test_sdf_train.py",
    "sdf/field": "sdf/test_sdf_train.py",
    "sdf/renderers/dibr": "sdf/test_dibr.py",
    "sdf/renderers/splats": "sdf/test_surface.py",
    "splat/image_losses": "splat/test_splat_train.py",
    "tables/avatar_method": "tables/test_evaluate.py",
    "tables/drawing": "tables/test_report.py",
    "tables/methods": "tables/test_image_folder.py",
    "tables/page": "tables/test_report.py",
    "tables/layout": "tables/test_paper.py",
    "tables/table": "tables/test_evaluate.py",
    "tables/typeset": "tables/test_paper.py",
}

Arrows = dict[str, set[str]]


def unit_of(module: str) -> str:
    """The unit of a dotted name: ``eavatar.face.fit`` is in ``face``."""
    return [*module.split("."), "__init__"][1]


def imported(source: str, package: str) -> set[str]:
    """Dotted names of the modules that a source text imports from the package.

    Args:
        package: dotted name of the folder that holds the source, for relative imports.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "eavatar"}


def named(source: str) -> set[str]:
    """Dotted names of modules of the package that stand in a source text's strings."""
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    texts = (node.value for node in constants if isinstance(node.value, str))
    return {found[0] for text in texts if (found := MODULE.match(text))}


def arrows(sources: Mapping[str, str], units: set[str]) -> Arrows:
    """The units that each unit imports.

    Args:
        sources: source texts by dotted name of the module.
        units: names of all units; another name after ``eavatar.`` is an attribute of the package.
    """
    found: Arrows = {}
    for module, source in sources.items():
        names = imported(source, module.rpartition(".")[0])
        names |= set() if module == REGISTRY else named(source)
        ends = {unit_of(name) for name in names}
        ends = {end if end in units else "__init__" for end in ends}
        found.setdefault(unit_of(module), set()).update(ends - {unit_of(module)})
    return found


def faults(found: Arrows) -> list[str]:
    """What breaks the rules, a sentence each."""
    told = [f"{unit} is in no layer" for unit in sorted(found) if unit not in FLOOR]
    apart = set().union(*(LAYERS[name] for name in APART))
    for unit, ends in sorted(found.items()):
        for end in sorted(end for end in ends if unit in FLOOR and end in FLOOR):
            if FLOOR[end] > FLOOR[unit]:
                told.append(f"{unit} imports {end}, which is above it")
            elif FLOOR[end] == FLOOR[unit] and unit in apart:
                told.append(f"{unit} imports {end}, and both are {list(LAYERS)[FLOOR[unit]]}")
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        told.append(f"a circle: {' -> '.join(error.args[1])}")
    return told


def package() -> dict[str, str]:
    """Source texts of the package's files by dotted name, ``__init__`` as any other."""
    paths = (ROOT / "eavatar").rglob("*.py")
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p.read_text() for p in paths}


def package_units() -> set[str]:
    return {unit_of(module) for module in package()}


def test_imports_point_down_and_stages_import_no_stage():
    assert faults(arrows(package(), package_units())) == []


def test_every_unit_of_the_layers_exists():
    assert package_units() == set(FLOOR)


def test_the_picture_shows_these_layers():
    assert PICTURE.read_text() == draw(LAYERS), "draw it again: python -m docs.architecture"


@pytest.mark.parametrize(
    ("module", "source", "told"),
    [
        ("eavatar.io", "import eavatar.face.fit", "io imports face, which is above it"),
        ("eavatar.sdf.train", "from eavatar.splat import train", "both are stages"),
        ("eavatar.view.player", "from eavatar import demo", "both are tools"),
        ("eavatar.face.fit", "def f():\n    from ..prior import align", "both are stages"),
        ("eavatar.face.fit", "RUN = 'eavatar.prior.align:run'", "both are stages"),
        ("eavatar.data.frames", "from eavatar import __version__", "imports __init__"),
        ("eavatar.extra.new", "", "extra is in no layer"),
    ],
)
def test_a_bad_import_is_found(module, source, told):
    found = faults(arrows({module: source}, {*FLOOR, "extra"}))
    assert len(found) == 1
    assert told in found[0]


def test_the_registry_of_backends_may_name_folders_but_not_import_them():
    name = "FOLDER = 'eavatar.capture.backends'"
    assert faults(arrows({REGISTRY: name}, set(FLOOR))) == []
    assert faults(arrows({"eavatar.settings": name}, set(FLOOR))) != []
    assert faults(arrows({REGISTRY: "import eavatar.capture.backends"}, set(FLOOR))) != []


def test_a_circle_within_a_layer_is_found():
    sources = {
        "eavatar.data.frames": "import eavatar.rendering.tiles",
        "eavatar.rendering.tiles": "from eavatar.data import frames",
    }
    assert "a circle" in faults(arrows(sources, set(FLOOR)))[0]


def test_good_imports_are_not_told():
    sources = {
        "eavatar.face.fit": "import numpy\nfrom . import noise\nfrom eavatar.io import read",
        "eavatar.view.score": "from eavatar.capture import layouts",
    }
    assert faults(arrows(sources, set(FLOOR))) == []


def test_every_module_has_its_test_file_or_a_reason():
    modules = [name.split(".")[1:] for name in package() if not name.endswith("__init__")]
    missing = set()
    for *folder, name in modules:
        place = ROOT.joinpath("tests", *folder)
        own = (place / f"test_{name}.py", place / f"test_{'_'.join([*folder, name])}.py")
        if not any(path.is_file() for path in own):
            missing.add("/".join([*folder, name]))
    assert missing == set(TESTED_ELSEWHERE)


def test_the_places_of_tests_elsewhere_exist():
    gone = [path for path in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / path).is_file()]
    assert gone == []


def test_sums_in_free_order_are_of_inlined_kernels_alone():
    """Others have other last digits in the process that compiles than in those that load them."""
    files = (ROOT / "eavatar").rglob("*.py")
    free = [line for path in files for line in path.read_text().splitlines() if "fastmath=" in line]
    assert free  # the splatting's
    assert [line for line in free if "forceinline=True" not in line] == []
