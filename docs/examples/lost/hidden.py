from fastapi import FastAPI, HTTPException

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def charge(card: str) -> None:
    raise HTTPException(402, f"card {card} was declined")


@app.post("/charge")
async def charge_later(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, "4242")
