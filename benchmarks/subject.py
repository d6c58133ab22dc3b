"""Time and memory of a whole subject by rule, from a run on a part of it: ``python -m
benchmarks.subject results/<subject> --timesteps 2500 --held-out 200``, in seconds.

Snakemake's benchmark files say what each job of the run took. A rule's time is scaled by what it
depends on, which `SCALED_BY` has: the timesteps, or the images (timesteps × cameras), of all
sequences, or the images of the test sequences; the trainings and the rules on one mesh take what
they take. Start-up and compilation are scaled with the rest, so a part should be long enough for
them not to count. A rule's elapsed time takes into account that as many of its jobs run side by
side as the cores allow; that jobs of different rules may, too, is left out, so that the sum is an
upper bound.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eavatar.io import read_sequences
from eavatar.threads import count_threads

RULES = Path(__file__).parents[1] / "workflow" / "rules"
TIMESTEPS, IMAGES, TEST_IMAGES, NOTHING = "timesteps", "images", "test images", "—"
SCALED_BY = {
    "ingest": IMAGES,
    "matte": IMAGES,
    "detect_landmarks": IMAGES,
    "fit_face": TIMESTEPS,
    "refine_face": IMAGES,
    "measure_gaze": IMAGES,
    "measure_appearance": IMAGES,
    "floors": TEST_IMAGES,  # but for its mean image, which is a tenth of its time
    "evaluate": TEST_IMAGES,
}
"""What the time of a rule grows with; of the others with nothing."""
MEBIBYTE_PER_GIGABYTE = 1e9 / 2**20


@dataclass(frozen=True)
class Size:
    """How long a subject is.

    Attributes:
        timesteps: of all its sequences.
        images: of these in all cameras.
        test_images: of the test sequences.
    """

    timesteps: int
    images: int
    test_images: int

    @classmethod
    def of(cls, capture: Path) -> Size:
        """What was ingested into ``results/<subject>/capture``."""
        split = read_sequences(capture / "sequences.json")
        train, test = (
            [pd.read_csv(capture / f"{name}.csv") for name in names]
            for names in (split.train, split.test)
        )
        images, test_images = sum(map(len, train)), sum(map(len, test))
        timesteps = sum(table["timestep"].nunique() for table in (*train, *test))
        return cls(timesteps, images + test_images, test_images)


@dataclass(frozen=True)
class Rule:
    """What the jobs of a rule took in a run.

    Attributes:
        name: of the rule.
        jobs: how many.
        seconds: elapsed, of all jobs together.
        cpu_seconds: likewise.
        memory_gb: resident, of the largest job.
        side_by_side: jobs that run at once.
    """

    name: str
    jobs: int
    seconds: float
    cpu_seconds: float
    memory_gb: float
    side_by_side: int

    @classmethod
    def read(cls, name: str, path: Path, cores: int) -> Rule:
        """From its benchmark file, or the folder of its jobs' files."""
        files = sorted(path.rglob("*.tsv")) if path.is_dir() else [path]
        table = pd.concat([pd.read_csv(file, sep="\t") for file in files])
        return cls(
            name,
            len(table),
            float(table["s"].sum()),
            float(table["cpu_time"].sum()),
            float(table["max_rss"].max()) / MEBIBYTE_PER_GIGABYTE,
            min(len(table), max(cores // threads_of(name), 1)),
        )

    @property
    def scaled_by(self) -> str:
        return SCALED_BY.get(self.name, NOTHING)

    def factor(self, part: Size, whole: Size) -> float:
        """Time for the whole / time for the part."""
        return {
            TIMESTEPS: whole.timesteps / part.timesteps,
            IMAGES: whole.images / part.images,
            TEST_IMAGES: whole.test_images / max(part.test_images, 1),
            NOTHING: 1.0,
        }[self.scaled_by]

    def elapsed(self, part: Size, whole: Size) -> float:
        """Seconds for the whole, jobs side by side."""
        return self.factor(part, whole) * self.seconds / self.side_by_side


def threads_of(rule: str) -> int:
    """The threads that a rule asks for; Snakemake gives no more than there are cores."""
    for path in RULES.glob("*.smk"):
        found = re.search(rf"^rule {rule}:\n((?:    .*\n|\n)*)", path.read_text(), re.MULTILINE)
        if found:
            threads = re.search(r"^    threads: (\d+)$", found[1], re.MULTILINE)
            return int(threads[1]) if threads else 1
    return 1


def read_rules(results: Path, cores: int) -> list[Rule]:
    """All rules of a run that wrote benchmark files, in the order of their last ones."""
    paths = sorted((results / "benchmarks").iterdir(), key=_last_written)
    return [Rule.read(path.name.removesuffix(".tsv"), path, cores) for path in paths]


def _last_written(path: Path) -> float:
    files = path.rglob("*.tsv") if path.is_dir() else [path]
    return max(file.stat().st_mtime for file in files)


def describe(rules: list[Rule], part: Size, whole: Size) -> Iterator[str]:
    """The lines of a Markdown table."""
    total = sum(rule.elapsed(part, whole) for rule in rules)
    yield (
        f"| rule | jobs | measured, {part.timesteps} timesteps | CPU | memory | grows with "
        f"| at once | {whole.timesteps} timesteps | share |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for rule in rules:
        elapsed = rule.elapsed(part, whole)
        yield (
            f"| `{rule.name}` | {rule.jobs} | {rule.seconds:.0f} s | {rule.cpu_seconds:.0f} s "
            f"| {rule.memory_gb:.1f} GB | {rule.scaled_by} | {rule.side_by_side} "
            f"| {elapsed:.0f} s | {100 * elapsed / total:.0f} % |"
        )
    measured, cpu = (
        sum(getattr(rule, key) for rule in rules) for key in ("seconds", "cpu_seconds")
    )
    yield f"| all | | {measured:.0f} s | {cpu:.0f} s | | | | {total:.0f} s | |"


def main() -> None:
    """Print the table of a subject."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("results", type=Path, help="results/<subject> of the run on a part")
    parser.add_argument("--timesteps", type=int, required=True, help="of the whole subject")
    parser.add_argument(
        "--held-out", type=int, help="of these; as many as in the part if not given"
    )
    parser.add_argument("--cores", type=int, default=count_threads(), help="of the run")
    a = parser.parse_args()
    part = Size.of(a.results / "capture")
    cameras = part.images / part.timesteps
    held_out = a.timesteps * part.test_images / part.images if a.held_out is None else a.held_out
    whole = Size(a.timesteps, round(a.timesteps * cameras), round(held_out * cameras))
    print("\n".join(describe(read_rules(a.results, a.cores), part, whole)))


if __name__ == "__main__":
    main()
