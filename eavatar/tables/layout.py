"""What the paper's tables and figures show, as data: rows and metrics; columns and crops.

The workflow reads it, so that it imports nothing large.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from eavatar.settings import Settings, read_yaml, validate

AVERAGE = "average"  # in place of a subject
RECORDED = "self_reenactment"
SPEED = (
    "training_hours",
    "steps_per_second",
    "frames_per_second",
)  # of speed.json; all else is of images.csv


class TableRow(Settings):
    """A row of a table."""

    label: str = Field(description="first column, and the published row beside it")
    variant: str | None = Field(None, description="that is measured; none: not built here")
    protocol: str = Field(RECORDED, description="of `images.csv`")


class Layout(Settings):
    """A table of ``config/tables.yaml``."""

    title: str
    metrics: tuple[str, ...] = Field(description="columns of images.csv, or of speed.json")
    rows: tuple[TableRow, ...]
    floors: tuple[TableRow, ...] = Field((), description="rows below a line")
    reference: str | None = Field(
        None, description="label of a row that all are compared with, seed by seed"
    )
    note: str = Field("", description="what the reader must know of its rows")

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        labels = [row.label for row in (*self.rows, *self.floors)]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise ValueError(f"two rows have the label '{min(twice)}'")
        if self.reference not in (None, *labels):
            raise ValueError(f"no row has the label '{self.reference}' of the reference")
        return self

    @property
    def variants(self) -> list[str]:
        """Variants that it needs, each once."""
        rows = (*self.rows, *self.floors)
        return list(dict.fromkeys(row.variant for row in rows if row.variant))

    @property
    def speed(self) -> bool:
        """Whether it shows times and not images."""
        return set(self.metrics) <= set(SPEED)


class Column(Settings):
    """A column of a figure."""

    label: str
    variant: str | None = Field(None, description="none: the truth")


class FigureLayout(Settings):
    """A figure of ``config/tables.yaml``."""

    title: str
    columns: tuple[Column, ...]
    crops: tuple[Literal["whole", "mouth", "eyes", "brows"], ...] = ("whole",)
    views: int = Field(3, ge=1, description="most pictures, those of strongest expression")
    surfaces: bool = Field(False, description="stage I over its steps in place of pictures")

    @model_validator(mode="after")
    def _has_something_to_show(self) -> Self:
        if not self.variants:
            raise ValueError("no column has a variant")
        if self.surfaces and len(self.variants) < len(self.columns):
            raise ValueError("of surfaces each column needs a variant, and no two the same")
        return self

    @property
    def variants(self) -> list[str]:
        """Variants that it needs, each once."""
        return list(dict.fromkeys(column.variant for column in self.columns if column.variant))


class Layouts(Settings):
    """``config/tables.yaml``."""

    tables: dict[str, Layout] = Field(description="by name")
    figures: dict[str, FigureLayout] = Field(description="by name")


def read_layouts(path: Path) -> Layouts:
    """The layouts of a file.

    Raises:
        UserError: it is missing or faulty.
    """
    return validate(Layouts, read_yaml(path), str(path))
