"""The behaviour suite on all that is supported: `uv run nox`; one Python: `uv run nox -p 3.12`."""

import os
import shutil

import nox

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# The last version before each change that this project depends on, and the newest: 0.128.2 takes Depends() on a
# BackgroundTasks subclass, 0.137 rebuilt the routers, 0.142 brought telemetry of its own. The oldest is in `lowest`.
FASTAPI = ["0.128.1", "0.136.0", "0.141.0", "newest"]


@nox.session
@nox.parametrize(
    ("python", "fastapi"),
    [(python, fastapi) for python in PYTHONS for fastapi in FASTAPI if python == "3.12" or fastapi == "newest"],
)
def behaviour(session: nox.Session, fastapi: str) -> None:
    """Run tests/behaviour with one version of FastAPI and the Starlette that it brings."""
    _behaviour(session, "fastapi" if fastapi == "newest" else f"fastapi=={fastapi}")


@nox.session(python=PYTHONS)
def lowest(session: nox.Session) -> None:
    """Run tests/behaviour with the lowest version of every dependency that pyproject.toml promises."""
    _behaviour(session, "--resolution=lowest-direct")


def _behaviour(session: nox.Session, *requirements: str) -> None:
    session.install(".", *nox.project.dependency_groups(PROJECT, "behaviour"), *requirements)
    session.run("pytest", "tests/behaviour", "-q", *session.posargs)


# The newest Python is not everywhere, and without it the newest engines are to be tested as well.
@nox.session
@nox.parametrize(("python", "versions"), [(PYTHONS[0], "lowest"), *((python, "newest") for python in PYTHONS[-2:])])
def engines(session: nox.Session, versions: str) -> None:
    """Run tests/engines with the lowest version of each engine that pyproject.toml promises, or with the newest."""
    extras = PROJECT["project"]["optional-dependencies"]
    promised = [requirement for engine in ("celery", "dramatiq", "taskiq") for requirement in extras[engine]]
    lowest = [requirement.replace(">=", "==") for requirement in promised]
    groups = nox.project.dependency_groups(PROJECT, "behaviour", "engines")
    session.install(".", *groups, "fastapi>=0.142", *(lowest if versions == "lowest" else promised))
    session.run("pytest", "tests/engines", "-q", *session.posargs)


@nox.session(python=PYTHONS[0])
def no_sdk(session: nox.Session) -> None:
    """Run the tests that docs/testing.md shows with nothing but pytest and what the test client needs."""
    session.install(".", "httpx2", "pytest>=9")
    absent = "from importlib.util import find_spec; assert find_spec('opentelemetry.sdk') is None"
    session.run("python", "-c", absent)
    session.chdir("docs/examples/testing")
    alone = "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"  # without the settings of this repository
    session.run("pytest", *alone, "-W", "error", "-q", "test_shop.py", "test_with_unittest.py", *session.posargs)


@nox.session(python=PYTHONS)
def neighbours(session: nox.Session) -> None:
    """Run tests/neighbours beside the newest of what else traces FastAPI applications."""
    session.install(".", *nox.project.dependency_groups(PROJECT, "neighbours"))
    session.run("pytest", "tests/neighbours", "-q", *session.posargs)


@nox.session(python=False)
def alerts(session: nox.Session) -> None:
    """Check the alerts of docs/examples/alerts, and run the tests of each, with Prometheus' own tool."""
    if shutil.which("promtool") is None:
        session.skip("promtool is missing: it comes with Prometheus, in Debian with the package prometheus")
    session.chdir("docs/examples/alerts")
    session.run("promtool", "check", "rules", "rules.yml", external=True)
    session.run("promtool", "test", "rules", "rules_test.yml", external=True)
