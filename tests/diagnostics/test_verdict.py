import numpy as np

from ppgen.diagnostics import checks as d
from ppgen.diagnostics.verdict import Check, report

GOOD = Check("depth", 2.0, ">= 1", True, "report this: must never happen")
BAD = Check("breadth", 0.5, ">= 1 <b>", False, "make it broader")


def test_failures_come_first_and_what_passed_is_named_in_short():
    lines = str(report([GOOD, BAD])).splitlines()
    assert lines[0] == "Not to be trusted as it is: 1 of 2 checks failed (breadth)."
    assert lines[1:] == ["FAIL breadth: 0.5 (wanted >= 1 <b>): make it broader", "ok   depth 2"]


def test_advice_is_given_where_a_check_failed_and_nowhere_else():
    assert report([GOOD, BAD]).table["advice"].tolist() == ["", "make it broader"]
    assert "must never happen" not in report([GOOD])._repr_html_()


def test_a_report_shows_itself_in_words_and_in_notebooks_with_failures_first():
    found = report([GOOD, BAD])
    assert repr(found) == str(found)
    shown = found._repr_html_()
    assert shown.index("breadth") < shown.index("depth")
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown


def test_divergences_are_counted():
    diverging = np.zeros((64, 1000), dtype=bool)
    diverging[0, :5] = True
    text = str(d.report(list(d.check_sampler({"diverging": diverging}))))
    assert "FAIL divergences: 5 of 64,000 draws (wanted 0): the posterior has corners" in text


def test_what_was_not_compared_is_not_shown_to_be_good():
    found = report([GOOD, *d.check_compared()])
    assert not found.ok
    assert "Not shown to be good: 1 check passed, but the one that matters was not made. Not shown: " in found.verdict
    assert "give diagnose the data, fit.diagnose(x)." in found.verdict
    worse = report([BAD, *d.check_compared()])
    assert "1 of 2 checks failed (breadth). Not shown: how far" in worse.verdict
