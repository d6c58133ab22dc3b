"""The folder ``results/<subject>``: where things are in it, and a sentence when they are not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eavatar.errors import UserError

DEFAULT_VARIANT = "full"


@dataclass(frozen=True)
class Results:
    """A subject's results.

    Attributes:
        root: ``results/<subject>``.
    """

    root: Path

    @classmethod
    def open(cls, root: Path) -> Results:
        """The results in a folder.

        Raises:
            UserError: it is none of a subject.
        """
        if cls._is_one(root):
            return cls(root)
        if not root.is_dir():
            raise UserError(f"the results folder {root} does not exist; name results/<subject>.")
        subjects = [entry.name for entry in sorted(root.iterdir()) if cls._is_one(entry)]
        inside = f"; it holds those of {', '.join(subjects)}" if subjects else ""
        raise UserError(
            f"{root} is not the results folder of a subject{inside}; name results/<subject>."
        )

    @staticmethod
    def _is_one(root: Path) -> bool:
        return any((root / stage).is_dir() for stage in ("capture", "face", "splat"))

    @property
    def capture(self) -> Path:
        return self.root / "capture"

    @property
    def face(self) -> Path:
        return self.root / "face"

    @property
    def cameras(self) -> Path:
        """``capture/cameras.json``, of the ingested frames."""
        return self.capture / "cameras.json"

    @property
    def full_cameras(self) -> Path:
        """``capture/full_cameras.json``, of the same cameras' uncropped images at full size."""
        return self.capture / "full_cameras.json"

    def tracking(self, sequence: str) -> Path:
        """``face/tracking/<sequence>.npz``.

        Raises:
            UserError: there is none; lists those that there are.
        """
        folder = self.face / "tracking"
        path = folder / f"{sequence}.npz"
        if not path.exists():
            known = ", ".join(sorted(found.stem for found in folder.glob("*.npz"))) or "none"
            raise UserError(f"{folder} holds no sequence '{sequence}'; tracked are: {known}.")
        return path

    def avatar(self, variant: str | None = None) -> Path:
        """``splat/<variant>`` of a trained avatar; arguments and errors as of `model`."""
        return self.model("splat", variant)

    def model(self, stage: str, variant: str | None = None) -> Path:
        """``<stage>/<variant>`` of a trained model.

        Args:
            stage: ``sdf`` or ``splat``.
            variant: its name; None for the only one, or for ``full`` among several.

        Raises:
            UserError: nothing is trained yet, the variant is unknown, or one must be named.
        """
        found = {path.parent.name for path in self.root.glob(f"{stage}/*/model.yaml")}
        names = ", ".join(sorted(found))
        if not found:
            target = f"{self.root}/{stage}/{variant or DEFAULT_VARIANT}/model.safetensors"
            raise UserError(
                f"{self.root} holds no trained model in {stage}/ yet; train it with: snakemake "
                f"--cores all {target}"
            )
        if variant is None:
            variant = next(iter(found)) if len(found) == 1 else DEFAULT_VARIANT
        if variant not in found:
            raise UserError(
                f"{self.root}/{stage} holds no variant '{variant}'; name one of: {names}."
            )
        return self.root / stage / variant
