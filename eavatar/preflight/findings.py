"""What an examination of inputs or of a machine found: every fault, not only the first."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from eavatar.errors import UserError

Status = Literal["ok", "missing", "wrong", "warning"]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

ITEM_WIDTH, TEXT_WIDTH = 34, 100  # characters of a table's columns


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        item: what was looked at.
        status: ``missing`` and ``wrong`` stop a run; ``warning`` does not.
        text: what was found; for a fault also which file or setting, and what to do.
    """

    item: str
    status: Status
    text: str


@dataclass
class Examination:
    """Collects findings; a `UserError` becomes one of them and the examination goes on.

    Attributes:
        findings: all of them, in order.
        subject: begins the names of the items; empty if they are of no subject.
    """

    findings: list[Finding] = field(default_factory=list)
    subject: str = ""

    def about(self, subject: str) -> Examination:
        """The same examination, where it is about one subject."""
        return Examination(self.findings, subject)

    def add(self, item: str, status: Status, text: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(f"{self.subject} {item}".strip(), status, text))

    def attempt(
        self,
        item: str,
        path: Path | None,
        reader: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **keywords: Arguments.kwargs,
    ) -> Result | None:
        """What a reader returns, or None and a finding.

        Args:
            item: what is looked at.
            path: the file in question; the fault is ``missing`` if it does not exist.
            reader: is called.
            *arguments: of the reader.
            **keywords: of the reader.
        """
        try:
            return reader(*arguments, **keywords)
        except UserError as error:
            gone = path is not None and not path.exists()
            self.add(item, "missing" if gone else "wrong", str(error))
        return None

    @property
    def faults(self) -> list[Finding]:
        """What would stop a run."""
        return [finding for finding in self.findings if finding.status in ("missing", "wrong")]

    def table(self) -> str:
        """The findings as text in columns: item, status, what to do."""
        lines = []
        for finding in self.findings:
            texts = textwrap.wrap(
                finding.text, TEXT_WIDTH, break_long_words=False, break_on_hyphens=False
            )
            items = textwrap.wrap(finding.item, ITEM_WIDTH)
            for row in range(max(len(texts), len(items))):
                item = items[row] if row < len(items) else ""
                status = finding.status if row == 0 else ""
                text = texts[row] if row < len(texts) else ""
                lines.append(f"{item:<{ITEM_WIDTH}}  {status:<7}  {text}".rstrip())
        return "\n".join(lines)
