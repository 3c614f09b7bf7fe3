"""A report as one HTML file: headings, plain words, tables and figures, all inside it."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from ppgen.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Section", "render"]

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; }
h2 { font-size: 1.25rem; border-bottom: 1px solid #ddd; margin-top: 2.4rem; padding-bottom: .2rem; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; margin: .8rem 0; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee; } th { background: #f6f6f6; }
.good { border-left: 5px solid #117733; } .bad { border-left: 5px solid #CC6677; }
.good, .bad { background: #f8f8f8; padding: .5rem 1rem; white-space: pre-line; }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes
    ----------
    title : its heading.
    words : paragraphs of plain text; HTML in them is shown, not run.
    figures : figures or axes.
    tables : tables, shown with their index.
    verdict : a sentence to stand out, with whether it is good news.
    """

    title: str
    words: Sequence[str] = ()
    figures: Sequence["Figure | Axes"] = ()
    tables: Sequence[pd.DataFrame] = ()
    verdict: tuple[str, bool] | None = field(default=None)


def render(title: str, sections: Sequence[Section]) -> str:
    """The report as a self-contained HTML page: no script, nothing fetched from anywhere."""
    parts = [f"<h1>{html.escape(title)}</h1>", *(_section(section) for section in sections)]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.verdict is not None:
        text, good = section.verdict
        parts.append(f'<p class="{"good" if good else "bad"}">{html.escape(text)}</p>')
    parts += [f"<p>{html.escape(text)}</p>" for text in section.words]
    parts += [_image(figure, section.title) for figure in section.figures]
    parts += [
        table.to_html(border=0, float_format=lambda value: f"{value:.3g}", na_rep="–") for table in section.tables
    ]
    return "\n".join(parts)


def _image(drawn: "Figure | Axes", title: str) -> str:
    figure = drawn.get_figure(root=True)
    if figure is None:
        raise DataError("report: axes must belong to a figure, got axes that were removed from theirs")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(title, quote=True)}" src="data:image/png;base64,{text}">'
