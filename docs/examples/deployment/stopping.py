# mypy: disable-error-code="import-untyped, misc"
# pyright: reportMissingTypeStubs=false

import signal
from types import FrameType

from uvicorn_worker import UvicornWorker


class StoppingWorker(UvicornWorker):
    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | {
        "timeout_graceful_shutdown": 20
    }

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        signal.raise_signal(signal.SIGTERM)
