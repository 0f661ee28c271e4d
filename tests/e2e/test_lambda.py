"""AWS Lambda's Invoke API with AWS's own client."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

pytestmark = pytest.mark.e2e

HANDLER = """
import time


def handler(event, context):
    do = event.get("do")
    if do == "raise":
        raise KeyError("no such thing: grün")
    if do == "context":
        return {
            "name": context.function_name, "version": context.function_version, "memory": context.memory_limit_in_mb,
            "request": context.aws_request_id, "arn": context.invoked_function_arn, "client": context.client_context,
            "group": context.log_group_name, "remaining": context.get_remaining_time_in_millis(),
        }
    if do == "hang":
        time.sleep(60)
    if do == "exit":
        import os
        os._exit(3)
    if do == "nonsense":
        return object()
    print("working on", event.get("text", "nothing"))
    return {"echo": event}
"""
BATCHED = """
import time
import rewarm


@rewarm.function(batched=True, max_instances=1, batching=rewarm.Dynamic(max_size=8, max_wait="50ms"))
def batch(events, contexts):
    if any(event.get("do") == "raise" for event in events):
        raise RuntimeError("the batch failed")
    if any(event.get("do") == "short" for event in events):
        return []
    return [
        object() if e.get("do") == "nonsense" else {"n": e.get("n"), "size": len(events), "id": c.aws_request_id}
        for e, c in zip(events, contexts)
    ]
"""


def make_client(server: Any) -> Any:
    return boto3.client(
        "lambda", endpoint_url=server.url, region_name="eu-central-1", aws_access_key_id="nobody",
        aws_secret_access_key="nothing", config=Config(retries={"total_max_attempts": 1}, max_pool_connections=32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def deployed(server: Any) -> Any:
    server.deploy(HANDLER, handler="app.handler", name="aws", memory="256MB", timeout="1s")
    server.deploy(BATCHED, name="aws-batch")
    return server


@pytest.fixture(scope="module")
def client(deployed: Any) -> Any:
    return make_client(deployed)


def call(client: Any, event: Any, name: str = "aws", **options: Any) -> tuple[dict[str, Any], Any]:
    answer = client.invoke(FunctionName=name, Payload=json.dumps(event).encode(), **options)
    text = answer["Payload"].read()
    return answer, json.loads(text) if text else None


def test_request_response(client: Any) -> None:
    answer, said = call(client, {"text": "x"})
    assert answer["StatusCode"] == 200 and "FunctionError" not in answer and answer["ExecutedVersion"] == "1"
    assert said == {"echo": {"text": "x"}} and "LogResult" not in answer
    assert len(answer["ResponseMetadata"]["RequestId"]) == 36


def test_without_a_payload_the_event_is_empty(client: Any) -> None:
    assert json.loads(client.invoke(FunctionName="aws")["Payload"].read()) == {"echo": {}}


def test_dry_run_does_not_run(client: Any, deployed: Any) -> None:
    before = deployed.stats("aws")["calls"]
    answer, said = call(client, {}, InvocationType="DryRun")
    assert answer["StatusCode"] == 204 and said is None
    assert deployed.stats("aws")["calls"] == before
    with pytest.raises(ClientError) as caught:
        call(client, {}, "aws-nothing", InvocationType="DryRun")
    assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"


def test_event_is_refused_with_a_type(client: Any, deployed: Any) -> None:
    before = deployed.stats("aws")["calls"]
    with pytest.raises(ClientError, match="RequestResponse") as caught:
        call(client, {}, InvocationType="Event")
    response = caught.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 501 and response["Error"]["Code"] == "ServiceException"
    assert "rewarm-start" not in response["ResponseMetadata"]["HTTPHeaders"]
    assert deployed.stats("aws")["calls"] == before


def test_log_tail(client: Any) -> None:
    call(client, {"text": "before"})
    answer, _ = call(client, {"text": "grün"}, LogType="Tail")
    lines = base64.b64decode(answer["LogResult"]).decode().splitlines()
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert lines[0] == f"START RequestId: {request_id} Version: 1"
    assert lines[1:-1] == ["working on grün", f"END RequestId: {request_id}"]
    parts = lines[-1].split("\t")
    assert parts[0] == f"REPORT RequestId: {request_id}"
    assert [part.partition(":")[0] for part in parts[1:4]] == ["Duration", "Billed Duration", "Memory Size"]
    assert parts[3] == "Memory Size: 256 MB"


def test_log_tail_of_a_failure_has_its_traceback(client: Any) -> None:
    answer, _ = call(client, {"do": "raise"}, LogType="Tail")
    assert "KeyError" in base64.b64decode(answer["LogResult"]).decode()


def test_context(client: Any) -> None:
    given = base64.b64encode(json.dumps({"client": {"app": "e2e"}}).encode()).decode()
    answer, said = call(client, {"do": "context"}, ClientContext=given)
    assert 0 < said.pop("remaining") <= 1000
    assert said == {
        "name": "aws", "version": "1", "memory": "256", "group": "/aws/lambda/aws",
        "arn": "arn:aws:lambda:local:000000000000:function:aws", "client": {"client": {"app": "e2e"}},
        "request": answer["ResponseMetadata"]["RequestId"],
    }  # fmt: skip


def test_an_exception_is_a_function_error(client: Any) -> None:
    answer, said = call(client, {"do": "raise"})
    assert answer["StatusCode"] == 200 and answer["FunctionError"] == "Unhandled"
    assert said["errorType"] == "KeyError" and said["errorMessage"] == "'no such thing: grün'"
    assert said["requestId"] == answer["ResponseMetadata"]["RequestId"]
    assert len(said["stackTrace"]) == 1 and "handler line" in said["stackTrace"][0]


def test_an_answer_that_is_not_json_is_a_function_error(client: Any) -> None:
    answer, said = call(client, {"do": "nonsense"})
    assert answer["StatusCode"] == 200 and answer["FunctionError"] == "Unhandled" and said["errorType"] == "TypeError"


def test_a_timeout_is_a_function_error(client: Any) -> None:
    answer, said = call(client, {"do": "hang"})
    assert answer["StatusCode"] == 200 and answer["FunctionError"] == "Unhandled"
    assert said["errorType"] == "Sandbox.Timedout" and "1 s" in said["errorMessage"]
    assert call(client, {"text": "x"})[1] == {"echo": {"text": "x"}}  # and the instance is replaced


def test_an_exit_is_a_function_error(client: Any) -> None:
    answer, said = call(client, {"do": "exit"}, LogType="Tail")
    assert answer["StatusCode"] == 200 and answer["FunctionError"] == "Unhandled"
    assert said["errorType"] == "Runtime.ExitError" and "status 3" in said["errorMessage"]


def test_unknown_functions_and_versions(client: Any) -> None:
    for options in ({"name": "aws-nothing"}, {"name": "aws:7"}, {"name": "aws", "Qualifier": "7"}):
        with pytest.raises(ClientError, match="rewarm ls") as caught:
            call(client, {}, **options)
        response = caught.value.response
        assert response["Error"]["Code"] == "ResourceNotFoundException", options
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 404
        assert "rewarm-start" not in response["ResponseMetadata"]["HTTPHeaders"]
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        call(client, {}, "aws-nothing")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aws", {"Qualifier": "1"}), ("aws", {"Qualifier": "$LATEST"}), ("aws:1", {}), ("aws:$LATEST", {}),
        ("arn:aws:lambda:eu-central-1:123456789012:function:aws", {}), ("123456789012:function:aws:1", {}),
    ],
)  # fmt: skip
def test_names_and_qualifiers(client: Any, name: str, options: dict[str, str]) -> None:
    answer, said = call(client, {"text": "q"}, name, **options)
    assert answer["ExecutedVersion"] == "1" and said == {"echo": {"text": "q"}}


def test_a_payload_that_is_not_json(client: Any) -> None:
    with pytest.raises(ClientError, match="not JSON") as caught:
        client.invoke(FunctionName="aws", Payload=b"{oops")
    response = caught.value.response
    assert response["Error"]["Code"] == "InvalidRequestContentException"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert "rewarm-start" not in response["ResponseMetadata"]["HTTPHeaders"]


def test_a_payload_over_the_limit(client: Any) -> None:
    with pytest.raises(ClientError) as caught:
        client.invoke(FunctionName="aws", Payload=b'"' + b"x" * (2 << 20) + b'"')
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert caught.value.response["Error"]["Code"] == "RequestTooLargeException"


def test_batched_handler(client: Any, deployed: Any) -> None:
    deployed.warm("aws-batch")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: call(client, {"n": n}, "aws-batch"), range(24)))
    assert [said["n"] for _, said in found] == list(range(24))
    assert max(said["size"] for _, said in found) > 1
    for answer, said in found:
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        assert said["id"] == answer["ResponseMetadata"]["RequestId"]
        assert headers["rewarm-batch-size"] == str(said["size"])


def test_batched_handler_that_fails(client: Any) -> None:
    for do, kind in (("raise", "RuntimeError"), ("short", "ValueError"), ("nonsense", "TypeError")):
        answer, said = call(client, {"do": do}, "aws-batch")
        assert answer["FunctionError"] == "Unhandled" and said["errorType"] == kind
    assert call(client, {"n": 5}, "aws-batch")[1]["n"] == 5


def test_one_answer_that_is_not_json_hurts_its_caller_only(client: Any, deployed: Any) -> None:
    deployed.warm("aws-batch")
    events = [{"n": n, "do": "nonsense"} if n == 3 else {"n": n} for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda event: call(client, event, "aws-batch"), events))
    assert [n for n, (answer, _) in enumerate(found) if "FunctionError" in answer] == [3]


def test_listing(client: Any) -> None:
    listed = {function["FunctionName"]: function for function in client.list_functions()["Functions"]}
    one = client.get_function_configuration(FunctionName="aws")
    one.pop("ResponseMetadata")
    assert listed["aws"] == one
    assert one["MemorySize"] == 256 and one["Timeout"] == 1 and one["Version"] == "1" and one["State"] == "Active"
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_function_configuration(FunctionName="aws-nothing")


def test_a_function_on_arrays_answers_too(client: Any, deployed: Any) -> None:
    source = (
        "import rewarm\n\n\n@rewarm.function\nclass Sum:\n    def predict(self, x):\n        return x.sum(axis=1)\n"
    )
    deployed.deploy(source, name="aws-sum")
    assert call(client, [1, 2, 3.5], "aws-sum")[1] == 6.5
    with pytest.raises(ClientError) as caught:
        call(client, {"y": [1]}, "aws-sum")
    assert caught.value.response["Error"]["Code"] == "InvalidRequestContentException"


def test_a_failed_start_is_a_function_error(client: Any, deployed: Any) -> None:
    source = (
        "import os\n\nif 'rewarm-inspect' not in os.environ.get('TMPDIR', ''):\n    raise OSError('no luck')\n\n\n"
        "def handler(event, context):\n    return 1\n"
    )
    deployed.deploy(source, handler="app.handler", name="aws-broken")
    answer, said = call(client, {}, "aws-broken")
    assert answer["FunctionError"] == "Unhandled" and "no luck" in said["errorMessage"]
