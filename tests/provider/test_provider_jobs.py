"""The fake's files, jobs and batches, seen by the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest


@pytest.fixture
def client(provider: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.url, api_key=provider.key, max_retries=0, timeout=20) as made:
        yield made


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}], **more}


def upload(client: openai.OpenAI, rows: list[Any], purpose: Any = "fine-tune") -> str:
    content = "\n".join(json.dumps(r) for r in rows).encode()
    name = client.files.create(file=("rows.jsonl", content), purpose=purpose).id
    assert client.files.retrieve(name).status == "processed"
    return name


def test_a_job_takes_looks_and_learns(provider: Any, client: openai.OpenAI) -> None:
    file = upload(client, [row(i) for i in range(10)])
    hyper: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file, method=hyper, metadata={"sqlft": "x"})
    seen = [job.status]
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status != "succeeded":
        seen.append(job.status)
    assert seen == ["validating_files", "queued", "running", "running"]
    assert job.trained_tokens == 20
    assert [j.metadata for j in client.fine_tuning.jobs.list(limit=1)] == [{"sqlft": "x"}]
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=1))
    assert [e.data["step"] for e in events if e.data] == [2, 1]  # type: ignore[index]
    asked = client.chat.completions.create(
        model=str(job.fine_tuned_model), messages=[{"role": "user", "content": "q3"}]
    )
    assert asked.choices[0].message.content == "a3"


@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        ([row(0)], {}, "at least 10"),
        ([*map(row, range(10)), {"messages": [{"role": "user", "content": "x"}] * 2}], {}, "Line 11"),
        ([*map(row, range(9)), row(9, extra=1)], {}, "Line 10"),
        ([*map(row, range(10))], {"method": {"type": "dpo"}}, "Line 1"),
        ([*map(row, range(10))], {"hyperparameters": {"epochs": 1}}, "epochs"),
        ([*map(row, range(10))], {"suffix": "x" * 65}, "suffix"),
        ([*map(row, range(10))], {"extra_body": {"r": 8}}, "r"),
    ],
)
def test_jobs_that_are_refused(provider: Any, client: openai.OpenAI, rows: Any, more: Any, expected: str) -> None:
    with pytest.raises(openai.BadRequestError, match=expected):
        client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, rows), **more)
    assert not provider.created


def test_jobs_that_end_badly(provider: Any, client: openai.OpenAI) -> None:
    file = upload(client, [row(i) for i in range(10)])
    provider.fails = "the rows are odd"
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file)
    for _ in range(5):
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error and job.error.message) == ("failed", "the rows are odd")
    second = client.fine_tuning.jobs.create(model="tiny", training_file=file)
    assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(second.id)
    del provider.jobs[job.id]
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(job.id)


def test_batches(provider: Any, client: openai.OpenAI) -> None:
    provider.batch_errors["q1"] = (400, "odd")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "q0"}]}
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": json.loads(json.dumps(body))}
        for i in range(5)
    ]
    for i, line in enumerate(lines):
        line["body"]["messages"][0]["content"] = f"q{i}"  # type: ignore[index]
    file = upload(client, lines, "batch")
    batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    while (batch := client.batches.retrieve(batch.id)).status != "completed":
        pass
    good = [json.loads(x) for x in client.files.content(str(batch.output_file_id)).text.splitlines()]
    assert {x["custom_id"] for x in good} == {"0", "2", "3", "4"}
    [bad] = [json.loads(x) for x in client.files.content(str(batch.error_file_id)).text.splitlines()]
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("1", 400)
    assert provider.paid == {"q0": 1, "q2": 1, "q3": 1, "q4": 1}
    twice = upload(client, lines + lines[:1], "batch")
    with pytest.raises(openai.BadRequestError, match="unique"):
        client.batches.create(input_file_id=twice, endpoint="/v1/chat/completions", completion_window="24h")
