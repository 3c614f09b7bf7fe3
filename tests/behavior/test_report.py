from html.parser import HTMLParser

import pandas as pd

from ppgen.behavior.report import Section, render
from ppgen.plots.style import canvas


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in {"src", "href"}]


def test_a_report_holds_everything_inside_itself():
    figure = canvas()
    text = render("Mice", [Section("One", ["words"], [figure, figure.subplots()], [pd.DataFrame({"a": [1.0]})])])
    page = Page(text)
    assert page.tags.count("img") == 2
    assert "table" in page.tags
    assert "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_names_from_files_are_shown_and_not_run():
    evil = "<script>alert(1)</script>"
    text = render(evil, [Section(evil, [evil], [], [pd.DataFrame({evil: [evil]})], (evil, False))])
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") >= 6


def test_a_verdict_stands_out_as_good_or_bad():
    assert 'class="good"' in render("t", [Section("s", verdict=("fine", True))])
    assert 'class="bad"' in render("t", [Section("s", verdict=("not converged", False))])
