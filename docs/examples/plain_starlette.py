from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from traced_tasks import TracedBackgroundTask


async def resize(photo_id: int, *, width: int) -> None: ...


async def upload(request: Request) -> JSONResponse:
    photo_id = int(request.path_params["photo_id"])
    task = TracedBackgroundTask(resize, photo_id, width=800)
    return JSONResponse({"photo": photo_id}, background=task)


app = Starlette(
    routes=[Route("/photos/{photo_id:int}", upload, methods=["POST"])]
)
