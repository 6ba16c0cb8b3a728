"""The bundle's own parts: one idea a file, in rooms, wired together by the files in `configs`."""

from .runtime.old_names import keep_old_names

keep_old_names(__name__)
