"""Identity: stable over processes, sensitive to every value, refusing what has no stable form."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo.errors import StoreError
from sppo.fingerprint import canonical_json, digest_of, seed_of, stage_fingerprint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def test_the_order_of_keys_does_not_matter() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, True]}) == '{"a":[1.5,null,true],"b":1}'
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})


@given(PLAIN)
def test_every_plain_value_has_one_digest(value: object) -> None:
    assert digest_of(value) == digest_of(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {1, 2}, object(), b"x"])
def test_a_value_without_a_stable_form_is_refused(value: object) -> None:
    with pytest.raises(StoreError):
        digest_of({"key": value})


def test_a_fingerprint_changes_with_stage_version_recipe_and_inputs() -> None:
    base = stage_fingerprint("rank", 1, {"a": 1}, {"x": "0"})
    others = {
        stage_fingerprint("estimate", 1, {"a": 1}, {"x": "0"}),
        stage_fingerprint("rank", 2, {"a": 1}, {"x": "0"}),
        stage_fingerprint("rank", 1, {"a": 2}, {"x": "0"}),
        stage_fingerprint("rank", 1, {"a": 1}, {"x": "1"}),
    }
    assert len(others | {base}) == 5


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from sppo.fingerprint import seed_of; import sys; sys.stdout.write(str(seed_of(42, 1, 'p')))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(other) == seed_of(42, 1, "p")
    assert 0 <= int(other) < 2**63
    assert seed_of(42, 1, "p") != seed_of(42, 2, "p")
