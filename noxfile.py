"""The behaviour suite on every supported version: `uv run nox`, or one with `uv run nox -s "behaviour-3.12(...)"`."""

import nox

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST, NEWEST = "==0.115.0", ">=0.165"


@nox.session(python=PYTHONS)
@nox.parametrize("fastapi", [OLDEST, NEWEST])
def behaviour(session: nox.Session, fastapi: str) -> None:
    """Run tests/behaviour with one version of FastAPI and the Starlette that it brings."""
    session.install(".", f"fastapi{fastapi}", *nox.project.dependency_groups(PROJECT, "behaviour"))
    session.run("pytest", "tests/behaviour", "-q", *session.posargs)
