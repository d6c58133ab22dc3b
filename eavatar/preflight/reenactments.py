"""Cross-identity pairs: whose avatar is moved by whose sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from eavatar.errors import UserError
from eavatar.io import read_sequences
from eavatar.preflight.subjects import Plan, read_table

COLUMNS = ["avatar", "driver", "sequence"]


@dataclass(frozen=True)
class Pair:
    """A row of ``config/reenactments.csv``.

    Attributes:
        avatar: subject whose avatar is drawn.
        driver: subject who moves it; or, with a slash in it, a folder of `track-video`.
        sequence: of the driver.
    """

    avatar: str
    driver: str
    sequence: str

    @property
    def name(self) -> str:
        return f"{self.avatar}_{Path(self.driver).name}_{self.sequence}"

    @property
    def is_tracked_video(self) -> bool:
        return "/" in self.driver

    @property
    def driver_results(self) -> Path:
        """The folder that holds the driver's ``capture/`` and ``face/``."""
        return Path(self.driver) if self.is_tracked_video else Path("results", self.driver)


def read_pairs(path: Path, plans: Mapping[str, Plan], faulty: Container[str]) -> dict[str, Pair]:
    """The pairs by name, without those of subjects that cannot run.

    Args:
        path: the table.
        plans: of the subjects that can run.
        faulty: names of those that cannot.

    Raises:
        UserError: the table is missing or malformed, names an unknown subject, folder, sequence or
            variant, or two rows would write the same files.
    """
    if not path.is_file():
        raise UserError(f"the table of pairs {path} does not exist; see config/README.md.")
    header, rows = read_table(path)
    count = len(COLUMNS)
    if header != COLUMNS or any(len(row) < count or any(row[count:]) for row in rows):
        raise UserError(f"{path} needs the columns {','.join(COLUMNS)}, and no others.")
    pairs = [Pair(*row[:count]) for row in rows]
    usable = [pair for pair in pairs if pair.avatar not in faulty and pair.driver not in faulty]
    named = Counter(pair.name for pair in set(usable))
    for pair in usable:
        for name in (pair.avatar, pair.driver):
            if name not in plans and not (name == pair.driver and pair.is_tracked_video):
                raise UserError(f"{path}: subject '{name}' is not in the sample sheet.")
        names = _sequences(path, pair, plans)
        if pair.sequence not in names:
            raise UserError(
                f"{path}: driver '{pair.driver}' has no sequence '{pair.sequence}', but "
                f"{', '.join(names)}."
            )
        if named[pair.name] > 1:
            raise UserError(
                f"{path}: two rows would write {pair.name}.mp4; give one driver's folder another "
                "name."
            )
        plan = plans[pair.avatar]
        unknown = set(plan.config.reenactment.variants) - set(plan.variants)
        if unknown:
            raise UserError(
                f"reenactment.variants: subject '{pair.avatar}' has no variant "
                f"'{min(unknown)}', but {', '.join(plan.variants)}."
            )
    return {pair.name: pair for pair in usable}


def _sequences(path: Path, pair: Pair, plans: Mapping[str, Plan]) -> tuple[str, ...]:
    """Those of a pair's driver.

    Raises:
        UserError: the driver is a path, but no folder of `track-video`.
    """
    if not pair.is_tracked_video:
        return plans[pair.driver].sequences.names
    folder = pair.driver_results
    if not (folder / "face" / "identity.npz").is_file():
        raise UserError(
            f"{path}: driver '{pair.driver}' is no folder that holds a tracked face; make one of a "
            "video: eavatar track-video clip.mp4 --morphable-model … --output "
            f"{folder.with_suffix('')}."
        )
    return read_sequences(folder / "capture" / "sequences.json").names
