"""The job of the series tool: read, compare forecasts, fit, and write a folder with a report."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from ppgen.behavior.files import write_json
from ppgen.behavior.folders import check_output, output_folder
from ppgen.behavior.report import render
from ppgen.errors import DataError
from ppgen.series.reading import Series
from ppgen.series.series_report import ahead_table, regimes_table, series_sections
from ppgen.series.study import study

__all__ = ["analyse"]


def analyse(
    series: Series, out: Path, source: list[Path], *, horizon: int, random_seed: int, overwrite: bool,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Forecast a series, find its regimes, and write everything about them into ``out``."""
    if not 1 <= horizon <= len(series.values) - series.train:
        raise DataError(
            f"regimes: --horizon must be between 1 and the {len(series.values) - series.train} held-out steps, got "
            f"{horizon}"
        )
    check_output(out, overwrite, source)
    found = study(series, horizon, random_seed, say)
    with output_folder(out, overwrite, source) as work:
        found.best[1].fit.save(work / "model")
        found.table.to_csv(work / "scores.csv", index_label="model")
        ahead_table(found, series).to_csv(work / "forecast.csv", index=False)
        regimes_table(found, series).to_csv(work / "regimes.csv", index=False)
        page = render(f"Forecasts and regimes of {series.name}", series_sections(found, series, horizon))
        (work / "report.html").write_text(page, encoding="utf-8")
        record = {
            "command": "regimes", "ppgen": metadata.version("ppgen"), "forecasts_best": found.best[0],
            "regimes_by": found.regimes[0], "series": list(series.columns), "center": series.center.tolist(),
            "spread": series.spread.tolist(), "season": series.season, "train": series.train, "horizon": horizon,
            "random_seed": random_seed,
        }  # fmt: skip
        write_json(work / "run.json", record)
    say(f"report: {out / 'report.html'}")
