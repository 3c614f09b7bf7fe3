"""Tables with missing entries: compare ways to fill them on entries that were hidden, and report."""
