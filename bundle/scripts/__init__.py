"""The bundle's own parts: one idea a file, wired together by the files in `configs`."""
