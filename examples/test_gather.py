"""gather.py inside FastAPI's own test client: too much, a failure, an asker who has gone."""

import asyncio

import pytest
from fastapi.testclient import TestClient

from bert import BertForSequenceClassification
from examples import gather, serve
from lora import apply_lora_to_model, save_adapter
from support.errors import InputError
from support.offline import offline_pair

MINILM, _ = offline_pair()
QUESTION = {"adapter": "two", "texts": ["great film"]}


@pytest.fixture
def client(adapters):
    """The application in this process."""
    serve.app.state.gatherer = gather.Gatherer(MINILM, [f"two={adapters['two']}"])
    with TestClient(serve.app, raise_server_exceptions=False) as client:
        yield client


def test_too_much_waits_for_nobody(client, monkeypatch):
    monkeypatch.setattr(gather, "MAX_WAITING", 4)
    answer = client.post("/classify", json=QUESTION | {"texts": ["film"] * 5})
    assert answer.status_code == 503 and "try again" in answer.json()["detail"]
    assert client.post("/classify", json=QUESTION | {"texts": ["film"] * 4}).status_code == 200


def test_a_regression_is_not_shown_as_classes(adapters, tmp_path):
    model = BertForSequenceClassification.from_pretrained(MINILM, ["LABEL_0"])
    save_adapter(apply_lora_to_model(model), tmp_path, MINILM)
    refused = "numbers: gives a number, and what is served here are classes"
    with pytest.raises(InputError, match=refused):
        gather.Gatherer(MINILM, [f"two={adapters['two']}", f"numbers={tmp_path}"])


@pytest.fixture
def together(adapters):
    """Runs a coroutine of a Gatherer for twenty seconds at most; its run() must outlive that."""

    def together(work) -> list:
        async def both() -> list:
            gatherer = gather.Gatherer(MINILM, [f"two={adapters['two']}"])
            running = asyncio.create_task(gatherer.run())
            answer = await asyncio.wait_for(work(gatherer), 20)
            assert not running.done()
            running.cancel()
            return answer

        return asyncio.run(both())

    return together


def test_a_failing_batch_is_not_the_last(together, monkeypatch):
    async def twice(gatherer) -> list:
        with monkeypatch.context() as patch:
            patch.setattr(gatherer.bank, "forward_rows", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await gatherer.ask("two", ["great film"])
        return await gatherer.ask("two", ["great film"])

    assert together(twice)[0].keys() == {"bad", "good"}


def test_an_asker_who_has_gone_costs_nobody_else(together):
    async def two(gatherer) -> list:
        gone, stays = (asyncio.create_task(gatherer.ask("two", ["great film"])) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert together(two)[0].keys() == {"bad", "good"}
