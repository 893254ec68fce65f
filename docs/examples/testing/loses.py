from fastapi.testclient import TestClient
from shop import app

from traced_tasks.testing import record_tasks


def test_sold_out() -> None:
    with record_tasks():
        TestClient(app).post("/sold-out/7")
