"""The version, here and nowhere else (pyproject.toml reads it; ``importlib.metadata`` would cost 30 ms of the start)."""

VERSION = "0.1.0"
