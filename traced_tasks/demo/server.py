"""A real uvicorn on a free port of this machine, in a thread."""

import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def serve(app: ASGIApp) -> Generator[str, None, None]:
    """Serve `app`, and end when its requests have ended, background work and all. For the main thread only.

    Args:
        app: Any ASGI application.

    Yields:
        The URL of the server.

    Raises:
        OSError: No port could be opened.
    """
    config = uvicorn.Config(app, lifespan="on", ws="none", log_config=None, log_level="critical", access_log=False)
    config.load()  # here, not in the thread: Ctrl-C while two threads import can leave an import locked
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 0))
            # From here on a client can connect, and is served as soon as uvicorn is up: nobody has to wait for that.
            listener.listen()
        except OSError as exc:
            raise OSError(f"no port on 127.0.0.1 could be opened: {exc}") from exc
        host, port = listener.getsockname()
        thread = threading.Thread(target=server.run, args=([listener],), name=f"uvicorn on port {port}")
        try:
            with _uninterrupted():
                thread.start()
            yield f"http://{host}:{port}"
            server.should_exit = True
            while thread.is_alive():  # Ctrl-C in its join() makes it look finished, before Python 3.13
                time.sleep(0.01)
        except BaseException:  # Ctrl-C, mostly: wait for nothing
            server.should_exit = server.force_exit = True
            with suppress(RuntimeError):  # it had not even started
                thread.join()
            raise


@contextmanager
def _uninterrupted() -> Generator[None, None, None]:
    # Ctrl-C in the middle of a thread's start can leave a lock of it locked, for good.
    signals: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for number in signals:
            signal.raise_signal(number)
