"""segments.csv: one row for each segment found, and the column `accept` in which a person overrules the filter.

Knows what a row says, not how it was found. Times are seconds of the recording.
"""

import csv
import io
from dataclasses import dataclass, fields, replace
from pathlib import Path

from difflistener.clip import replacing
from difflistener.errors import UserError

SIDES = ("left", "right")
ANSWERS = {"yes": True, "y": True, "1": True, "true": True, "no": False, "n": False, "0": False, "false": False}


@dataclass(frozen=True)
class Row:
    """One candidate for a clip."""

    name: str
    start: float
    stop: float
    speaker: str
    """Side of the picture: left or right."""
    listener: str
    voice: float
    """Share of the frames in which the speaker speaks."""
    overlap: float
    """Share of the frames with a voice in which the listener may be speaking too."""
    rotation: float
    """Degrees by which the listener's head turns within a second, at most."""
    expression: float
    """Percent of the inter-ocular distance by which the listener's mouth or brows move within a second, at most."""
    reaction: float
    """The score: the larger of the two."""
    peak: float
    """Time of the strongest reaction."""
    answered: float | None
    """Time at which the listener begins to speak; None where the next turn is not the listener's."""
    kept: bool
    reason: str
    """Why it was not kept."""
    accept: bool | None = None
    """A person's own decision; None leaves it at `kept`."""

    @property
    def is_accepted(self) -> bool:
        return self.kept if self.accept is None else self.accept


COLUMNS = tuple(field.name for field in fields(Row))


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write segments.csv, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows([_write(getattr(row, name)) for name in COLUMNS] for row in rows)


def _write(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value


def read_rows(path: Path) -> list[Row]:
    """Read segments.csv, as written or as a spreadsheet saved it (semicolons, tabs, decimal commas).

    Raises:
        UserError: a column is missing, a value cannot be read (named by line), a name comes twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a table in UTF-8 ({error}).", "Save it as CSV in UTF-8.") from error
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}.", "Put it back, or delete the file and --resume to cut again.")
    rows = [_read(values, f"{path}, line {table.line_num}") for values in table]
    names = [row.name for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{path} has two rows named {twice}.", "Give each row its own name.")
    return rows


def _read(values: dict, where: str) -> Row:
    read = {}
    for field in fields(Row):
        value = (values[field.name] or "").strip()
        try:
            if field.type in (bool, bool | None):
                read[field.name] = None if value == "" and field.name == "accept" else ANSWERS[value.lower()]
            elif field.type in (float, float | None):
                read[field.name] = None if value == "" and field.name == "answered" else float(value.replace(",", "."))
            else:
                read[field.name] = value
        except (ValueError, KeyError) as error:
            what = "yes, no or nothing" if field.name == "accept" else "yes or no" if field.type is bool else "a number"
            raise UserError(f"{where}: {field.name} is {value!r}.", f"Write {what}.") from error
    row = Row(**read)
    if row.name != Path(row.name).name or row.name.startswith("."):
        raise UserError(f"{where}: {row.name!r} cannot name a folder.", "Put the name back as it was.")
    if {row.speaker, row.listener} != set(SIDES):
        raise UserError(f"{where}: speaker is {row.speaker!r}, listener is {row.listener!r}.", "One is left, the other is right.")
    if not 0 <= row.start < row.stop:
        raise UserError(f"{where}: it starts at {row.start:g} s and stops at {row.stop:g} s.", "A segment stops after it starts.")
    return row


def carry_decisions(rows: list[Row], before: list[Row]) -> list[Row]:
    """`rows` with what a person had decided of rows of the same names."""
    decided = {row.name: row.accept for row in before}
    return [replace(row, accept=decided.get(row.name)) for row in rows]
