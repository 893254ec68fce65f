"""A real uvicorn on a free port of this machine, in a thread."""

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from traced_tasks.demo.logs import kept


@contextmanager
def serve(app: ASGIApp, check: Callable[[], None] = lambda: None) -> Generator[str, None, None]:
    """Serve `app`, and end when its requests have ended, background work and all.

    Args:
        app: Any ASGI application.
        check: Is called every now and then while its end is waited for. If it raises, the wait is over.

    Yields:
        The URL of the server.

    Raises:
        OSError: No port could be opened.
    """
    config = uvicorn.Config(app, lifespan="on", ws="none", log_config=None, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    with kept("uvicorn.error"), socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 0))
            # From here on a client can connect, and is served as soon as uvicorn is up: nobody has to wait for that.
            listener.listen()
        except OSError as exc:
            raise OSError(f"no port on 127.0.0.1 could be opened: {exc}") from exc
        host, port = listener.getsockname()
        thread = threading.Thread(target=server.run, args=([listener],), name=f"uvicorn on port {port}")
        thread.start()
        try:
            yield f"http://{host}:{port}"
            server.should_exit = True
            while thread.is_alive():
                check()
                time.sleep(0.01)
        except BaseException:  # Ctrl-C, mostly: wait for nothing
            server.should_exit = server.force_exit = True
            thread.join()
            raise
