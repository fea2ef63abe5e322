"""Several adapters on one base over HTTP, by FastAPI and uvicorn; how texts become batches is in
gather.py. It loads what its command line names, and nothing else:

    python -m examples.serve offline/all-MiniLM-L6-v2 reviews=out/best again=out/final    # http://127.0.0.1:8000
    curl 127.0.0.1:8000/classify --json '{"adapter": "reviews", "texts": ["great film"]}'
"""

import asyncio
import contextlib

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import BaseModel, Field

from examples.gather import Gatherer
from support.console import run_main
from support.files import InputError
from support.options import OneLineParser

MAX_BYTES, MAX_TEXTS = (
    2**16,
    32,
)  # of a request; gather.py limits the tokens of a text, and how many texts wait
SECONDS = Histogram("bert_lora_seconds", "From a request to its answer")
ANSWERS = Counter("bert_lora_answers", "Answers by their HTTP status", ["status"])
refusal = lambda status, text=str: lambda _, error: JSONResponse({"detail": text(error)}, status)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    answering = asyncio.create_task(app.state.gatherer.run())
    yield  # until SIGTERM has come and the last answer is out: uvicorn sees to that
    answering.cancel()


refusals = {InputError: refusal(422), asyncio.QueueFull: refusal(503)}
# FastAPI's own answer repeats what it got, and fails where that is no Unicode or no number.
refusals[RequestValidationError] = refusal(
    422, lambda error: "{loc}: {msg}".format(**error.errors()[0])
)
app = FastAPI(
    lifespan=lifespan, exception_handlers=refusals, docs_url=None, redoc_url=None
)  # these load foreign code
app.get("/")(lambda: FileResponse(__file__.removesuffix("py") + "html"))
app.get("/health")(lambda: {"status": "ok"})
app.get("/metrics")(lambda: Response(generate_latest(), media_type=CONTENT_TYPE_LATEST))
app.get("/adapters")(lambda: app.state.gatherer.labels)


class Question(BaseModel):
    adapter: str
    texts: list[str] = Field(min_length=1, max_length=MAX_TEXTS)


@app.post("/classify")
async def classify(question: Question) -> list[dict[str, float]]:
    return await app.state.gatherer.ask(question.adapter, question.texts)


@app.middleware("http")
async def limit_and_count(request: Request, call_next) -> Response:
    with SECONDS.time():
        if (
            "transfer-encoding" in request.headers
            or int(request.headers.get("content-length", 0)) > MAX_BYTES
        ):
            response = JSONResponse(
                {"detail": f"a body needs a Content-Length of at most {MAX_BYTES}"}, 413
            )
        else:
            response = await call_next(request)
    ANSWERS.labels(response.status_code).inc()
    return response


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="the directory of the base model")
    parser.add_argument(
        "adapters",
        nargs="+",
        metavar="NAME=DIRECTORY",
        help="what is served; nothing else is loaded",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--batch", type=int, default=32, help="texts answered together, or 1 (default: %(default)s)"
    )
    given = parser.parse_args()
    app.state.gatherer = Gatherer(given.base, given.adapters, given.batch)
    uvicorn.run(
        app, host=given.host, port=given.port, log_level="warning", timeout_graceful_shutdown=120
    )


if __name__ == "__main__":
    run_main(main)
