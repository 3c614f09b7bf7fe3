"""Folders on disk: sealed, locked, replaced as a whole."""
