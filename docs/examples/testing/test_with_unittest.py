from unittest import TestCase

from fastapi.testclient import TestClient
from shop import app, charge

from traced_tasks.testing import record_tasks


class ShopTest(TestCase):
    def setUp(self) -> None:
        self.tasks = self.enterContext(record_tasks(held=True))

    def test_an_order(self) -> None:
        TestClient(app).post("/orders/7")

        assert self.tasks.one(charge).args == (7,)
