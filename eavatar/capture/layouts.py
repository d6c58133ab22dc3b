"""Which layout a capture has and where its sequences are, from the names of folders alone.

No file is opened and nothing heavy is imported: a workflow asks this of every subject when it is
parsed. The captures themselves are read by `eavatar.capture.captures`.

    NeRSemble v2          <root>/sequences/<sequence>/images/cam_<serial>.mp4
    NeRSemble benchmark   the same, and <root>/sequences/<sequence>/alpha_maps/cam_<serial>.mp4
    NeRSemble v1          <root> is <download>/camera_params/<participant>; the videos are
                          <download>/sequence_<sequence>_part-<n>/<participant>/<sequence>/cam_*.mp4
    Gaussian Head Avatar  <root>/images/<timestep>/image_<camera>.jpg; <root>/sequences/<name>.txt
                          lists the timesteps of a sequence, one folder name per line (optional);
                          <root>/held_out is another such folder (optional)
    plain                 <root>/cameras.json, <root>/sequences/<sequence>/cam_<camera>.mp4; see
                          `eavatar.capture.plain`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from eavatar.errors import UserError

BACKGROUND = "BACKGROUND"  # the folder of the plates among the sequences
GHA_PARTS = {".": "all", "held_out": "held_out"}
"""The parts of a Gaussian Head Avatar folder, and the name of a part's only sequence if it has no
lists."""
RESERVED = ("masks", "plates", "visible")  # other folders beside those of the ingested sequences


class Layout(Enum):
    """The layouts of captures, by the names that messages use."""

    NERSEMBLE_V1 = "NeRSemble v1"
    NERSEMBLE_V2 = "NeRSemble v2"
    BENCHMARK = "NeRSemble benchmark"
    GHA = "Gaussian Head Avatar"
    PLAIN = "plain"


def recognise(root: Path) -> Layout:
    """The layout of a capture.

    Raises:
        UserError: the folder has none of the layouts; the sentence says what each needs.
    """
    if (root / "cameras.json").is_file():
        return Layout.PLAIN
    if (root / "images").is_dir() and (root / "cameras").is_dir():
        return Layout.GHA
    if find_v1(root).parent.name == "camera_params" and (root / "camera_params.json").exists():
        return Layout.NERSEMBLE_V1
    if (root / "sequences").is_dir():
        masks = next(root.glob("sequences/*/alpha_maps"), None)
        return Layout.BENCHMARK if masks else Layout.NERSEMBLE_V2
    raise UserError(
        f"{root} is no capture of a known layout: it needs a folder 'sequences' (NeRSemble v2 and "
        "benchmark), to be <download>/camera_params/<participant> (NeRSemble v1), folders 'images' "
        "and 'cameras' (Gaussian Head Avatar), or a file 'cameras.json' (any other rig, see "
        "docs/own_rigs.md)."
    )


def list_sequence_names(root: Path) -> list[str]:
    """The names of a capture's sequences, sorted; plates are no sequence.

    Raises:
        UserError: the folder has none of the layouts.
    """
    layout = recognise(root)
    if layout is Layout.GHA:
        parts = {root / part: whole for part, whole in GHA_PARTS.items()}
        return sorted(
            name
            for part, whole in parts.items()
            if (part / "images").is_dir()
            for name in ([path.stem for path in part.glob("sequences/*.txt")] or [whole])
        )
    if layout is Layout.NERSEMBLE_V1:
        return sorted(set(list_v1_folders(root)) - {BACKGROUND})
    if layout is Layout.PLAIN:
        folders = (path for path in root.glob("sequences/*/") if path.name != BACKGROUND)
        return sorted(path.name for path in folders if not path.name.startswith("."))
    return sorted(path.parent.name for path in root.glob("sequences/*/images") if path.is_dir())


def is_plain(name: str) -> bool:
    """Whether a name does for a folder, for Snakemake's patterns, and for a word after a flag."""
    return name != "" and name[0] not in ".-" and not {*"/{}"} & {*name}


def check_names(sequences: Iterable[str]) -> None:
    """Raise `UserError` if a sequence has a name that the workflow cannot use."""
    for name in sequences:
        if name in RESERVED or not is_plain(name):
            raise UserError(
                f"a sequence cannot be called '{name}': {', '.join(RESERVED)} are other folders of "
                "the results, and { or } anywhere, or . or - in front, would be read as something "
                "else; rename it, or leave it out with capture.ingest.exclude."
            )


def find_v1(root: Path) -> Path:
    """<download>/camera_params/<participant> of a path that may be a link to it."""
    return root if root.parent.name == "camera_params" else root.resolve()


def list_v1_folders(root: Path) -> dict[str, list[Path]]:
    """Sequence (BACKGROUND too) to its folders in the parts of a NeRSemble v1 download."""
    root, folders = find_v1(root), defaultdict(list)
    for path in sorted(root.parent.parent.glob(f"sequence_*_part-*/{root.name}/*/")):
        folders[path.name].append(path)
    return dict(folders)


def list_recordings(root: Path) -> dict[str, list[Path]]:
    """Sequence to what holds its images; of Gaussian Head Avatar's folders a part's sequences all.

    Raises:
        UserError: the folder has none of the layouts.
    """
    layout, names = recognise(root), list_sequence_names(root)
    if layout is Layout.NERSEMBLE_V1:
        folders = list_v1_folders(root)
        return {name: folders[name] for name in names}
    if layout is Layout.GHA:
        parts = [root / part / kind for part in GHA_PARTS for kind in ("images", "sequences")]
        return dict.fromkeys(names, parts)
    inner = "" if layout is Layout.PLAIN else "images"
    return {name: [root / "sequences" / name / inner] for name in names}


def list_shared(root: Path) -> list[Path]:
    """What holds that all sequences of a capture share: calibration, colours and plates.

    Raises:
        UserError: the folder has none of the layouts.
    """
    layout = recognise(root)
    if layout is Layout.NERSEMBLE_V1:
        participant = find_v1(root)
        colours = participant.parent.parent / "color_correction" / participant.name
        return [root, colours, *list_v1_folders(root).get(BACKGROUND, [])]
    if layout is Layout.GHA:
        return [root / "background", *(root / part / "cameras" for part in GHA_PARTS)]
    if layout is Layout.PLAIN:
        own = [root / "cameras.json", root / "crops.json"]
        return [*own, root / "sequences" / BACKGROUND]
    return [root / "calibration", root / "sequences" / BACKGROUND]


def list_masks(root: Path, sequence: str) -> list[Path]:
    """What may hold a sequence's masks in a folder that the column ``mattes`` names."""
    parts = [root / part / kind for part in GHA_PARTS for kind in ("images", "sequences")]
    return [root / sequence, root / "sequences" / sequence / "alpha_maps", *parts]
