"""Several adapters on one base over HTTP, by FastAPI and uvicorn.

    python -m examples.serve offline/all-MiniLM-L6-v2 reviews=out/best again=out/final
    curl 127.0.0.1:8000/classify --json '{"adapter": "reviews", "texts": ["great film"]}'

http://127.0.0.1:8000 is a page. Nothing but what the command line names is loaded. How texts become
batches is in gather.py.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import BaseModel, Field

from examples.gather import Gatherer
from support.errors import InputError, run_main
from support.options import OneLineParser

# Of a request. gather.py limits how many texts wait, and cuts each as its adapter's training did.
MAX_BYTES = 2**16
MAX_TEXTS = 32
PAGE = Path(__file__).with_name("page")
SECONDS = Histogram("bert_lora_seconds", "From a request to its answer")
ANSWERS = Counter("bert_lora_answers", "Answers by their HTTP status", ["status"])


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    answering = asyncio.create_task(app.state.gatherer.run())
    yield  # until SIGTERM has come and the last answer is out: uvicorn sees to that
    answering.cancel()


app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)  # those pages load foreign code
app.mount("/page", StaticFiles(directory=PAGE))


class Question(BaseModel):
    adapter: str
    texts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=MAX_TEXTS)


@app.post("/classify")
async def classify(question: Question) -> list[dict[str, float]]:
    return await app.state.gatherer.ask(question.adapter, question.texts)


@app.get("/adapters")
def adapters() -> dict[str, list[str]]:
    return app.state.gatherer.labels


@app.get("/")
def page() -> FileResponse:
    return FileResponse(PAGE / "serve.html")


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/metrics")
def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@app.exception_handler(InputError)
def refuse(_, error: InputError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(RequestValidationError)
def refuse_form(_, error: RequestValidationError) -> JSONResponse:
    # FastAPI's own answer repeats what it got, and fails where that is no Unicode or no number.
    return JSONResponse({"detail": "{loc}: {msg}".format(**error.errors()[0])}, 422)


@app.exception_handler(asyncio.QueueFull)
def say_busy(_, error: asyncio.QueueFull) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)


@app.middleware("http")
async def limit_and_count(request: Request, call_next) -> Response:
    size = int(request.headers.get("content-length", 0))
    with SECONDS.time():
        if size > MAX_BYTES or "transfer-encoding" in request.headers:
            problem = f"a body needs a Content-Length of at most {MAX_BYTES}"
            response = JSONResponse({"detail": problem}, 413)
        else:
            response = await call_next(request)
    ANSWERS.labels(response.status_code).inc()
    return response


def main() -> None:
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    add("base", help="the directory of the base model")
    add("adapters", nargs="+", metavar="NAME=DIRECTORY", help="what is served")
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="default: %(default)s")
    add("--batch", type=int, default=32, help="texts answered together, or 1 (default: 32)")
    given = parser.parse_args()
    if not 0 <= given.port < 2**16:
        raise InputError(f"--port {given.port}: expected a number from 0 to 65535")
    app.state.gatherer = Gatherer(given.base, given.adapters, given.batch)
    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        log_level="warning",
        timeout_graceful_shutdown=120,
    )


if __name__ == "__main__":
    run_main(main)
