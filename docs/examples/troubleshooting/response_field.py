from fastapi import FastAPI

from traced_tasks import TracedBackgroundTask

app = FastAPI()


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTask) -> None: ...
