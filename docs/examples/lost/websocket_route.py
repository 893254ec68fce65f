from fastapi import FastAPI, WebSocket

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def save(text: str) -> None:
    print(f"saved: {text}")


@app.websocket("/forgets")
async def forgets(
    websocket: WebSocket, tasks: TracedBackgroundTasks
) -> None:
    await websocket.accept()
    tasks.add_task(save, await websocket.receive_text())
    await websocket.close()


@app.websocket("/saves")
async def saves(
    websocket: WebSocket, tasks: TracedBackgroundTasks
) -> None:
    await websocket.accept()
    tasks.add_task(save, await websocket.receive_text())
    await websocket.close()
    await tasks()
