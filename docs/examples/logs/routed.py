import json
import logging
import logging.config

from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks

FIELDS = "levelname", "name", "code.function.name", "error.type"


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        known = {name: getattr(record, name, None) for name in FIELDS}
        return json.dumps({**known, "message": record.getMessage()})


def not_skipped(record: logging.LogRecord) -> bool:
    return getattr(record, "error.type", None) != "skipped"


logging.config.dictConfig(
    {
        "version": 1,
        "formatters": {"json": {"()": JSONFormatter}},
        "handlers": {
            "tasks": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "filters": [not_skipped],
            }
        },
        "loggers": {
            "traced_tasks": {
                "handlers": ["tasks"],
                "level": "INFO",
                "propagate": False,
            }
        },
    }
)

app = FastAPI()


def charge(order: int) -> None:
    raise TimeoutError(f"order {order}")


def send_receipt(order: int) -> None: ...


@app.post("/orders/{order}")
def order(order: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, order)
    tasks.add_task(send_receipt, order)
