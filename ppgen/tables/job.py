"""The job of the table tool: read, compare ways to fill, fill, and write a folder with a report."""

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from ppgen.behavior.files import write_json
from ppgen.behavior.folders import check_output, output_folder
from ppgen.behavior.report import render
from ppgen.tables.imputers import IMPUTERS, MODELS
from ppgen.tables.reading import bundled_table, read_table
from ppgen.tables.study import study
from ppgen.tables.table_report import filled_table, intervals_table, next_table, outliers_table, table_sections

__all__ = ["fill"]

DIGITS = "%.12g"  # of values in their own units, which scaling and scaling back changes in the last digits


def fill(
    source: Path | str, out: Path, *, shares: Sequence[float], random_seed: int, overwrite: bool,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Fill a CSV file (a path) or a bundled table (its name), and write everything about it into ``out``."""
    inputs = [source] if isinstance(source, Path) else []
    check_output(out, overwrite, inputs)
    table = read_table(source) if isinstance(source, Path) else bundled_table(source)
    found = study(table.values, shares, [*IMPUTERS, *MODELS], random_seed, say)
    doubtful, measured_next = outliers_table(table, random_seed), next_table(found, table, random_seed)
    with output_folder(out, overwrite, inputs) as work:
        found.fit.save(work / "model")
        found.table.to_csv(work / "scores.csv", index=False)
        filled_table(found, table).to_csv(work / "filled.csv", index=False, float_format=DIGITS)
        intervals_table(found, table).to_csv(work / "intervals.csv", index=False, float_format=DIGITS)
        doubtful.to_csv(work / "outliers.csv", index=False, float_format=DIGITS)
        measured_next.to_csv(work / "next.csv", index=False, float_format=DIGITS)
        sections = table_sections(found, table, doubtful, measured_next)
        (work / "report.html").write_text(render(f"Missing entries of {table.name}", sections), encoding="utf-8")
        record = {
            "command": "missing_data", "ppgen": metadata.version("ppgen"), "filled_by": found.best,
            "columns": list(table.columns), "center": table.center.tolist(), "spread": table.spread.tolist(),
            "shares": list(shares), "random_seed": random_seed,
        }  # fmt: skip
        write_json(work / "run.json", record)
    say(f"report: {out / 'report.html'}")
