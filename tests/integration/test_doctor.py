"""The doctor against a server that keeps its promises, and against one that lies about each in turn."""

from __future__ import annotations

import json

import pytest
import yaml

from gateway.cli import main
from gateway.doctor import Report, chosen_caps, examine
from gateway.domain.route import Deployment, Route
from tests.lying_upstream import lying_upstream
from tests.servers import free_port


async def report(base_url: str, **fields: object) -> Report:
    [found] = await examine([Deployment("d", "truth", "openai_compatible", base_url=base_url, **fields)], 5)
    return found


async def test_a_server_that_keeps_its_promises_is_well():
    with lying_upstream() as url:
        found = await report(url)
    assert found.findings == []
    assert found.well
    assert (found.reachable, found.models, found.streaming, found.usage) == ("yes", "2, with it", "yes", "yes")
    assert (found.tools, found.schema, found.logprobs, found.template) == ("yes", "yes", "yes", "the server's")
    assert isinstance(found.first_token_ms, int)


@pytest.mark.parametrize(
    ("lie", "finding"),
    [
        ("models", "models: its list does not name 'truth'"),
        ("streaming", "streaming: the whole answer came as one piece"),
        ("usage", "usage: whole only"),
        ("counts", "usage: "),
        ("tools", "tools: it answered without a call"),
        ("schema", "response_format.json_schema: the answer does not follow the schema"),
        ("object", "response_format.json_object: the answer is no JSON object"),
        ("logprobs", "logprobs: none came"),
        ("n", "n: protocol: "),
        ("max_tokens", "max_tokens: 12 tokens came where 8 were allowed"),
        ("stop", "stop: the stop string stands in the answer"),
        ("chat", "chat: unavailable"),
    ],
)
async def test_each_lie_is_found(lie, finding):
    with lying_upstream(lie) as url:
        found = await report(url)
    assert not found.well
    assert any(one.startswith(finding) for one in found.findings), found.findings
    if lie != "chat":
        assert len(found.findings) == 1


async def test_what_is_not_claimed_is_not_asked():
    with lying_upstream("tools", "logprobs", "schema", "object") as url:
        lacks = frozenset({"tools", "logprobs", "response_format.json_schema", "response_format.json_object"})
        found = await report(url, lacks=lacks)
    assert found.findings == []
    assert (found.tools, found.logprobs, found.schema) == ("-", "-", "-")


async def test_a_server_that_refuses_the_cap_that_the_gateway_chooses_is_named():
    with lying_upstream("cap") as url:
        one = Deployment("d", "truth", "openai_compatible", base_url=url)
        for route, wrong in ((Route("m", ((one,),)), True), (Route("m", ((one,),), context=150), False)):
            [found] = await examine([one], 5, chosen_caps([route]))
            assert bool(found.findings) == wrong, found.findings
            if wrong:
                [finding] = found.findings
                assert finding.startswith("output cap: it refuses the 1024 tokens") and "'m'" in finding


async def test_a_server_of_another_dialect_is_reachable_and_named_so():
    with lying_upstream() as url:
        [found] = await examine([Deployment("d", "truth", "tgi", base_url=url.removesuffix("/v1") + "/nowhere")], 5)
    assert found.reachable == "yes"
    assert any(one.startswith("it answers, but not as its dialect says") for one in found.findings), found.findings
    [gone] = await examine([Deployment("d", "truth", "tgi", base_url=f"http://127.0.0.1:{free_port()}")], 5)
    assert (gone.reachable, len(gone.findings)) == ("no", 1)


async def test_an_object_that_the_probe_cuts_is_not_judged():
    with lying_upstream("unfinished") as url:
        found = await report(url)
    assert found.schema == "unfinished"
    assert found.findings == []


def configuration(tmp_path, url: str) -> str:
    deployments = {"d": {"dialect": "openai_compatible", "base_url": url, "model": "truth"}}
    tree = {"state_dir": str(tmp_path), "deployments": deployments, "models": {"m": {"tiers": [["d"]]}}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


def test_the_command_prints_a_table_and_what_is_wrong(tmp_path, capsys):
    with lying_upstream("tools") as url:
        assert main(["doctor", "--config", configuration(tmp_path, url)]) == 1
        said = capsys.readouterr().out
        assert "DEPLOYMENT" in said
        assert "d: tools: it answered without a call" in said
        assert url not in said
        assert main(["doctor", "--config", configuration(tmp_path, url), "--json", "d"]) == 1
        [found] = json.loads(capsys.readouterr().out)
        assert (found["deployment"], found["tools"], found["schema"]) == ("d", "no", "yes")
    with lying_upstream() as url:
        assert main(["doctor", "--config", configuration(tmp_path, url), "d"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--config", configuration(tmp_path, f"http://127.0.0.1:{free_port()}/v1"), "--timeout", "2"]) == 1
    assert "chat: unavailable" in capsys.readouterr().out
    assert main(["doctor", "--config", configuration(tmp_path, url), "other"]) == 1
    assert "no deployment named 'other'" in capsys.readouterr().err
