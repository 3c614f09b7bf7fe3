"""Answers about data, from a program and draws of its parameters."""
