from fastapi.testclient import TestClient
from shop import app, count_attempt

from traced_tasks.testing import record_tasks


def test_an_order_is_counted() -> None:
    with record_tasks() as tasks:
        TestClient(app).post("/orders/7")

    assert tasks.one(count_attempt).outcome == "completed"
