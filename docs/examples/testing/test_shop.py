import pytest
from fastapi.testclient import TestClient
from shop import app, charge, count_attempt, send_receipt

from traced_tasks.testing import RecordedTasks, record_tasks

client = TestClient(app)


def test_an_order_has_a_receipt() -> None:
    with record_tasks() as tasks:
        client.post("/orders/7")

    receipt = tasks.one(send_receipt)  # (1)!
    assert receipt.outcome == "completed"
    assert receipt.args == (7,)
    assert receipt.kwargs == {"email": "ada@example.org"}


def test_no_receipt_without_a_payment() -> None:
    with (
        record_tasks(allow_lost=True) as tasks,
        pytest.raises(ValueError, match="no order 0"),  # (2)!
    ):
        client.post("/orders/0")

    assert tasks.one(charge).outcome == "failed"
    assert str(tasks.one(charge).exception) == "there is no order 0"
    assert tasks.one(send_receipt).outcome == "skipped"


def test_sold_out() -> None:
    with record_tasks(allow_lost=True) as tasks:  # (3)!
        client.post("/sold-out/7")

    assert tasks.one(count_attempt).outcome == "dropped"


def test_an_order_charges_nobody_in_a_test() -> None:
    with record_tasks(held=True) as tasks:  # (4)!
        client.post("/orders/7")

    assert [task.func for task in tasks] == [charge, send_receipt]
    assert {task.outcome for task in tasks} == {"held"}


def test_with_the_fixture(recorded_tasks: RecordedTasks) -> None:
    recorded_tasks.held = True  # (5)!

    client.post("/orders/7")

    assert recorded_tasks.one(charge).args == (7,)


def test_an_unknown_page_adds_nothing(
    recorded_tasks: RecordedTasks,
) -> None:
    client.get("/unknown")

    assert not recorded_tasks  # (6)!
