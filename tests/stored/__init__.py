"""Small results as each format had them; `tests.avatar.test_files` says how to make the next."""

from pathlib import Path

FOLDER = Path(__file__).parent
