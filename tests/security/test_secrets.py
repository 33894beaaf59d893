"""Credentials in addresses are refused, and not repeated, wherever an address is taken; of a real run: test_hostile_run.py."""

from pathlib import Path

import pytest

from sppo.errors import LaunchError, RunError, StoreError
from sppo.store import Store


@pytest.mark.parametrize("url", ["s3://KEY:planted-secret@bucket/store", "file://me:planted-secret@host/store"])
def test_a_store_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(StoreError, match=r"\*\*\*@.*holds credentials") as refused:
        Store(url)
    assert "planted-secret" not in str(refused.value)


@pytest.mark.parametrize("value", ["s3://KEY:secret@bucket/x", "https://KEY@host"])
def test_the_servers_form_refuses_a_store_with_credentials_before_it_keeps_the_parameter(value: str) -> None:
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools import validate

    from flows.iteration import sppo_iteration

    schema = parameter_schema(sppo_iteration.fn).model_dump()
    good = {"recipe": "tiny", "hardware": "cpu", "run": "demo", "store": "s3://bucket/x", "iteration": 1}
    assert validate(good, schema) == []
    [problem] = validate({**good, "store": value}, schema)
    assert "store" in str(problem)
    secret = f"judge.source.url={value}"
    assert validate({**good, "overrides": ["judge.source.url=https://host/v1"]}, schema) == []
    assert len(validate({**good, "overrides": [secret]}, schema)) == 1


def test_serve_refuses_a_store_with_credentials_before_anything_is_deployed(tmp_path: Path) -> None:
    from flows.environment import serving_settings

    with pytest.raises(StoreError, match=r"--store s3://\*\*\*@bucket/store holds credentials"):
        serving_settings(tmp_path, tmp_path / "store", (), None, "s3://KEY:secret@bucket/store")


def test_nothing_that_is_said_of_a_prefect_server_repeats_credentials_of_its_address() -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows.children import children_of, server
    from flows.resumption import check_nobody_is_at_it
    from flows.server import prefect_server

    nobody_there = "http://me:planted-secret@127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: nobody_there, PREFECT_CLIENT_MAX_RETRIES: 0}):
        with prefect_server() as said:
            assert said == "the Prefect server at http://***@127.0.0.1:9/api"
        with pytest.raises(LaunchError, match=r"http://\*\*\*@127.0.0.1:9/api does not answer") as away, server() as client:
            children_of(client, "rank", "1f0c")
        with pytest.raises(RunError, match=r"http://\*\*\*@127.0.0.1:9/api cannot be asked about the run") as unknown:
            check_nobody_is_at_it("mine")
    assert "planted-secret" not in f"{away.value} {unknown.value}"
