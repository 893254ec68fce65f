from collections.abc import Iterator
from time import sleep
from typing import Annotated

from fastapi import Depends, FastAPI
from opentelemetry import trace
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from traced_tasks import TracedBackgroundTasks

engine = create_engine(
    "sqlite:///shop.db", pool_size=1, max_overflow=0, pool_timeout=0.5
)
tracer = trace.get_tracer("shop")
app = FastAPI(telemetry={"operation_spans": False})


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


Base.metadata.create_all(engine)
with Session(engine) as setup:
    setup.merge(Order(id=7, email="ada@example.org"))
    setup.commit()


def get_session() -> Iterator[Session]:
    with tracer.start_span("session"), Session(engine) as session:
        yield session


LongSession = Annotated[Session, Depends(get_session)]
ShortSession = Annotated[Session, Depends(get_session, scope="function")]


def send_mail(address: str) -> None:
    sleep(1)
    print(f"mail to {address}")


def mail_order(order: Order) -> None:
    send_mail(order.email)


def mail_by_id(order_id: int) -> None:
    with tracer.start_span("session"), Session(engine) as session:
        address = session.get_one(Order, order_id).email
    send_mail(address)


@app.post("/held/{order_id}")
def held(
    order_id: int, session: LongSession, tasks: TracedBackgroundTasks
) -> None:
    order = session.get_one(Order, order_id)
    tasks.add_task(mail_order, order)


@app.post("/detached/{order_id}")
def detached(
    order_id: int, session: ShortSession, tasks: TracedBackgroundTasks
) -> None:
    order = session.get_one(Order, order_id)
    session.commit()
    tasks.add_task(mail_order, order)


@app.post("/by-id/{order_id}")
def by_id(
    order_id: int, session: ShortSession, tasks: TracedBackgroundTasks
) -> None:
    order = session.get_one(Order, order_id)
    tasks.add_task(mail_by_id, order.id)
