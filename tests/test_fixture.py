"""The pytest fixture of `traced_tasks.testing`, in test runs of their own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run_pytest(folder: Path, *options: str, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options, str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=folder, env=environment
    )
    return ended.stdout + ended.stderr


CONFTEST = """
    from traced_tasks.testing import record_tasks  # before pytest loads it, which would otherwise warn

    pytest_plugins = ["traced_tasks.testing"]
"""


def test_the_fixture(tmp_path: Path) -> None:
    """The fixture records the tasks of a test, and fails it at its end if one was lost, unless that is allowed."""
    output = run_pytest(
        tmp_path,
        conftest=CONFTEST,
        test_shop="""
            import anyio
            from traced_tasks import TracedBackgroundTask

            def notify(user_id): ...

            def test_completes(recorded_tasks):
                anyio.run(TracedBackgroundTask(notify, 42))
                assert recorded_tasks.one(notify).outcome == "completed"

            def test_held(recorded_tasks):
                recorded_tasks.held = True
                anyio.run(TracedBackgroundTask(notify, 42))
                assert recorded_tasks.one(notify).outcome == "held"

            def test_allowed(recorded_tasks):
                recorded_tasks.allow_lost = True
                TracedBackgroundTask(notify, 42)

            def test_loses(recorded_tasks):
                TracedBackgroundTask(notify, 42)
        """,
    )

    assert "4 passed, 1 error" in output
    assert "ERROR test_shop.py::test_loses - AssertionError: 1 background task was lost:" in output


def test_the_fixture_of_a_test_that_fails(tmp_path: Path) -> None:
    """A test that fails, in itself or in another fixture, or skips itself, has no second error for what was lost."""
    output = run_pytest(
        tmp_path,
        conftest=CONFTEST,
        test_shop="""
            import pytest
            from traced_tasks import TracedBackgroundTask

            def lose():
                TracedBackgroundTask(print)
                raise LookupError("of the test's own")

            @pytest.fixture
            def order(recorded_tasks):
                lose()

            def test_fails(recorded_tasks):
                lose()

            def test_is_not_set_up(order): ...

            def test_skips_itself(recorded_tasks):
                TracedBackgroundTask(print)
                pytest.skip()  # what is tested; nothing of the run around it is skipped
        """,
    )

    assert "1 failed, 1 skipped, 1 error" in output
    assert "ERROR test_shop.py::test_is_not_set_up - LookupError: of the test's own" in output
    assert "AssertionError" not in output
