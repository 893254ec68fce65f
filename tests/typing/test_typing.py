"""Types are part of the API."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_right_use_passes_and_wrong_use_is_refused(checker: str) -> None:
    """mypy and pyright, both strict, accept right.py, and need every ignore comment of wrong.py."""
    done = subprocess.run(
        [sys.executable, "-m", checker, str(FOLDER)], cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
