from fastapi import FastAPI
from fastapi.responses import JSONResponse

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def send_welcome(email: str) -> None: ...


@app.post("/newsletter")
async def subscribe(email: str) -> JSONResponse:
    tasks = TracedBackgroundTasks()
    tasks.add_task(send_welcome, email)
    return JSONResponse({"status": "subscribed"})
