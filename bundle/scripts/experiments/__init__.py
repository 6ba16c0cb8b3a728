"""Whole workflows run one after another, each in a process of its own."""
