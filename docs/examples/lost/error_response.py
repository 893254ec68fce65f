from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks

app = FastAPI()


class SoldOutError(Exception): ...


def count_attempt(path: str) -> None: ...


@app.post("/returned")
async def returned(
    request: Request, tasks: TracedBackgroundTasks
) -> JSONResponse:
    tasks.add_task(count_attempt, request.url.path)
    return JSONResponse({"detail": "sold out"}, 409)


@app.post("/raised")
async def raised() -> None:
    raise SoldOutError("sold out")


@app.exception_handler(SoldOutError)
async def answer(request: Request, error: Exception) -> JSONResponse:
    task = TracedBackgroundTask(count_attempt, request.url.path)
    return JSONResponse({"detail": str(error)}, 409, background=task)
