"""Behavioural syllables: from pose files to labelled frames, tables, tests and a report."""
