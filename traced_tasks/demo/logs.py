"""What a library says, kept from the terminal."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from logging.handlers import BufferingHandler


@contextmanager
def kept(name: str) -> Generator[list[logging.LogRecord], None, None]:
    """Keep what is said on a logger, and below it, from all other handlers, Python's last resort included.

    Args:
        name: The logger's name.

    Yields:
        What was said, by and by, until the block ends.
    """
    logger = logging.getLogger(name)
    handler = BufferingHandler(capacity=1000)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        handler.close()
