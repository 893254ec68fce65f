"""The pictures of the live page: `uv run --with pillow python -m tests.live.pictures`.

They are of the shop of `python -m traced_tasks --serve`, in Chromium, while a task runs.
"""

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from playwright.sync_api import Browser, Page, sync_playwright

from tests.live.conftest import BROWSER
from tests.programs import http
from traced_tasks.demo.shop import serve_shop

PICTURES = Path(__file__).parent.parent.parent / "docs" / "pictures"


def open_page(browser: Browser, url: str, width: int, height: int, scheme: Literal["light", "dark"]) -> Page:
    """Open the live page in a window of a size."""
    page = browser.new_page(
        viewport={"width": width, "height": height}, device_scale_factor=2, color_scheme=scheme, locale="en-GB"
    )
    page.goto(f"{url}/tasks/")
    return page


def take(url: str, browser: Browser) -> None:
    """Send requests of which there is something to see, and take the pictures while the last one's task runs."""
    pages = {
        "live-light": open_page(browser, url, 1280, 900, "light"),
        "live-dark": open_page(browser, url, 1280, 900, "dark"),
        "live-phone": open_page(browser, url, 390, 844, "light"),
    }
    light = pages["live-light"]
    for path, then in [
        ("/checkout", "then 3 tasks for"),
        ("/coupon", "dropped"),
        ("/signup", "2 never ran"),
        ("/catalogue/export", "page 2"),
    ]:
        http.post(f"{url}{path}")
        light.locator("#cards").get_by_text(then).first.wait_for()
    shots = {name: page.screenshot() for name, page in pages.items()}
    for name, shot in shots.items():
        save(shot, PICTURES / f"{name}.png")


def save(shot: bytes, path: Path) -> None:
    """Save a picture in 256 colours, which nobody sees and which takes a third."""
    image: Any = import_module("PIL.Image")
    picture = image.open(BytesIO(shot)).convert("RGB")
    picture.quantize(256, image.Quantize.MAXCOVERAGE, dither=image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Take them all."""
    with (
        patch("socket.gethostname", return_value="shop-1"),  # the name of this machine would be on them
        serve_shop() as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        take(url, browser)
        browser.close()


if __name__ == "__main__":
    main()
