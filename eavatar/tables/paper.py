"""The paper's tables: what we measured beside what was published.

A table's layout is data (``config/tables.yaml``), as are the published values
(``published.csv``, each with its source). The paper names none of its subjects, so that averages
are compared, over different people.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eavatar.arrays import Float64
from eavatar.errors import UserError
from eavatar.io import read_table, require
from eavatar.settings import variant_of
from eavatar.tables.layout import AVERAGE, RECORDED, Layout, TableRow
from eavatar.tables.table import METRICS, write_table
from eavatar.tables.typeset import BY_COLUMN, write_documents

PUBLISHED = Path(__file__).with_name("published.csv")
COLUMNS = [
    "row", "variant", "protocol", "subject", "metric", "measured", "deviation", "seeds",
    "subjects", "published", "difference", "gain", "gain_deviation", "published_gain",
]  # fmt: skip
KEYS = ["subject", "variant", "seed", "protocol"]
NONE: Float64 = np.zeros(0)

Seeds = dict[str, Float64]  # values of each seed, by subject


def paper_table(name: str, layout: Layout, measured: Sequence[Path], output: Path) -> Path:
    """Write ``<name>.csv``, ``.md`` and ``.tex`` of one of the paper's tables, and print it.

    The ``.csv`` has a row for each row of the table, subject (and `AVERAGE`) and metric: mean and
    standard deviation over the seeds, how many these are, the published value, and ours less the
    published one. An average is the mean over subjects of each seed; the deviation is that of these
    means. Where the layout has a reference, the gain over it is the mean and deviation of what each
    seed gains, as seeds differ by more than rows do. Published cases, whose subjects are unknown,
    are rows of their own.

    Args:
        name: ``table1`` to ``table5``, as in ``published.csv``.
        layout: of the table.
        measured: ``results/<subject>/tables/<variant>/images.csv``, or ``speed.json`` there, of all
            subjects and variants with their seeds, as far as there are any; and
            ``results/<subject>/tables/floors.csv``, as a variant of that name.
        output: folder.
    Returns:
        ``output``.
    Raises:
        UserError: a file is missing or of another form, or the layout names an unknown metric.
    """
    unknown = [metric for metric in layout.metrics if metric not in BY_COLUMN]
    if unknown:
        raise UserError(f"{name} has no metric '{unknown[0]}'; there are {', '.join(BY_COLUMN)}.")
    read = read_speed if layout.speed else read_means
    means = pd.concat([pd.DataFrame(columns=KEYS), *(read(path) for path in measured)])
    table = join(layout, means, read_published(name))
    write_table(output / f"{name}.csv", table)
    text = write_documents(output, name, layout, table, find_hardware(measured))
    print(text)
    return output


def read_means(path: Path) -> pd.DataFrame:
    """The means over the images of an ``images.csv``, a row for each protocol."""
    table = read_table(path, "the table of images", ["camera"])
    if "protocol" not in table or table.empty:
        raise UserError(f"{path} holds no measured image; run `evaluate` again.")
    metrics = [metric.column for metric in METRICS if metric.column in table]
    means = table.groupby("protocol", sort=False)[metrics].mean().reset_index()
    return means.assign(**_place(path))


def read_speed(path: Path) -> pd.DataFrame:
    """The one row of a ``speed.json``."""
    content = json.loads(require(path, "the measured speed").read_text())
    return pd.DataFrame([{**content, **_place(path), "protocol": RECORDED}])


def find_hardware(measured: Sequence[Path]) -> list[str]:
    """What speed was measured on, each once."""
    speeds = [path for path in measured if path.suffix == ".json"]
    return list(dict.fromkeys(str(json.loads(path.read_text())["hardware"]) for path in speeds))


def _place(path: Path) -> dict[str, str]:
    """Subject, variant and seed of a path as `paper_table` takes it."""
    name, _, subject = (folder.name for folder in list(path.parents)[:3])
    if name == "tables":
        return {"subject": path.parents[1].name, "variant": path.stem, "seed": path.stem}
    return {"subject": subject, "variant": variant_of(name), "seed": name}


def read_published(name: str) -> pd.DataFrame:
    """The published values of a table: row, case, metric, value; cases also averaged."""
    table = pd.read_csv(PUBLISHED, dtype={"case": str})
    table = table[table["table"] == name].drop(columns=["table", "source"])
    averaged = set(table[table["case"] == AVERAGE]["row"])
    others = table[~table["row"].isin(averaged)]
    means = others.groupby(["row", "metric"], as_index=False)["value"].mean()
    return pd.concat([table, means.assign(case=AVERAGE)])


def join(layout: Layout, means: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The long table that `paper_table` writes.

    Args:
        layout: of the table.
        means: a row for each subject, variant, seed and protocol.
        published: of `read_published`.
    """
    reference = next((row for row in layout.rows if row.label == layout.reference), None)
    lines = []
    for row in (*layout.rows, *layout.floors):
        for metric in layout.metrics:
            cases = _cases(published, row.label, metric)
            known = {"published": cases.pop(AVERAGE, np.nan)}
            if reference:
                base = _cases(published, reference.label, metric).get(AVERAGE, np.nan)
                known["published_gain"] = known["published"] - base
            keys = {"row": row.label, "variant": row.variant, "protocol": row.protocol}
            keys["metric"] = metric
            of_reference = _values(means, reference, metric) if reference else {}
            for line in summarise(_values(means, row, metric), of_reference):
                lines.append({**keys, **line, **(known if line["subject"] == AVERAGE else {})})
            lines += [
                {**keys, "subject": f"case {case}", "published": value}
                for case, value in cases.items()
            ]
    table = pd.DataFrame(lines, columns=COLUMNS)
    return table.assign(difference=table["measured"] - table["published"])


def summarise(values: Seeds, of_reference: Seeds) -> list[dict[str, object]]:
    """Mean and deviation over seeds, of each subject and of the average over subjects.

    Seeds are matched between subjects, and with the reference, by their order; only those that all
    have are used for it.

    Args:
        values: of each seed, by subject.
        of_reference: likewise, of the row that is compared with.
    """
    gains = {
        subject: of_seeds[: len(of_reference[subject])] - of_reference[subject][: len(of_seeds)]
        for subject, of_seeds in values.items()
        if subject in of_reference
    }
    averages, gains = (_with_average(by_subject) for by_subject in (values, gains))
    return [
        {
            "subject": subject,
            "measured": _mean(of_seeds),
            "deviation": _deviation(of_seeds),
            "gain": _mean(gains.get(subject, NONE)),
            "gain_deviation": _deviation(gains.get(subject, NONE)),
            "seeds": len(of_seeds),
            "subjects": len(values) if subject == AVERAGE else 1,
        }
        for subject, of_seeds in averages.items()
    ]


def _cases(published: pd.DataFrame, label: str, metric: str) -> dict[str, float]:
    """A row's published values of a metric by case, the average among them."""
    rows = published[(published["row"] == label) & (published["metric"] == metric)]
    cases: dict[str, float] = rows.set_index("case")["value"].to_dict()
    return cases


def _values(means: pd.DataFrame, row: TableRow, metric: str) -> Seeds:
    """A row's measured values of each seed, by subject."""
    mine = means[(means["variant"] == row.variant) & (means["protocol"] == row.protocol)]
    return {
        str(subject): group[metric].to_numpy(dtype=np.float64)
        for subject, group in mine.groupby("subject", sort=False)
        if metric in group
    }


def _with_average(values: Seeds) -> Seeds:
    """Values of each seed by subject, and their average over the subjects."""
    shared = min(map(len, values.values()), default=0)
    cut = [of_seeds[:shared] for of_seeds in values.values()]
    return {**values, AVERAGE: np.mean(cut, axis=0) if cut else NONE}


def _mean(values: Float64) -> float:
    return float(values.mean()) if len(values) else np.nan


def _deviation(values: Float64) -> float:
    """Of a sample, with n - 1; of one value there is none."""
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan
