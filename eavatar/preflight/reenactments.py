"""Cross-identity pairs: whose avatar is moved by whose sequence."""

from __future__ import annotations

import csv
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from eavatar.errors import UserError
from eavatar.preflight.subjects import Plan

COLUMNS = ["avatar", "driver", "sequence"]


@dataclass(frozen=True)
class Pair:
    """A row of ``config/reenactments.csv``.

    Attributes:
        avatar: subject whose avatar is drawn.
        driver: subject who moves it.
        sequence: of the driver.
    """

    avatar: str
    driver: str
    sequence: str

    @property
    def name(self) -> str:
        return f"{self.avatar}_{self.driver}_{self.sequence}"


def read_pairs(path: Path, plans: Mapping[str, Plan], faulty: Container[str]) -> dict[str, Pair]:
    """The pairs by name, without those of subjects that cannot run.

    Args:
        path: the table.
        plans: of the subjects that can run.
        faulty: names of those that cannot.

    Raises:
        UserError: the table is missing or malformed, or names an unknown subject, sequence or
            variant.
    """
    if not path.is_file():
        raise UserError(f"the table of pairs {path} does not exist; see config/README.md.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != COLUMNS or any(None in row.values() or None in row for row in rows):
        raise UserError(f"{path} needs the columns {','.join(COLUMNS)}, and no others.")
    pairs = [Pair(**{key: value.strip() for key, value in row.items()}) for row in rows]
    usable = [pair for pair in pairs if pair.avatar not in faulty and pair.driver not in faulty]
    for pair in usable:
        for name in (pair.avatar, pair.driver):
            if name not in plans:
                raise UserError(f"{path}: subject '{name}' is not in the sample sheet.")
        names = plans[pair.driver].sequences.names
        if pair.sequence not in names:
            raise UserError(
                f"{path}: subject '{pair.driver}' has no sequence '{pair.sequence}', but "
                f"{', '.join(names)}."
            )
        plan = plans[pair.avatar]
        unknown = set(plan.config.reenactment.variants) - set(plan.variants)
        if unknown:
            raise UserError(
                f"reenactment.variants: subject '{pair.avatar}' has no variant "
                f"'{min(unknown)}', but {', '.join(plan.variants)}."
            )
    return {pair.name: pair for pair in usable}
