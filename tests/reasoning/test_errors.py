from __future__ import annotations

import copy
import pickle

import pytest

from reasoning import errors
from reasoning.errors import AudioError, EquivoxError, changes

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EquivoxError)]


def test_message_names_row_field_problem_and_cure():
    error = EquivoxError("is empty", row="1001", field="votes", cure="run it again")
    assert str(error) == "[1001] votes: is empty. To mend: run it again"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "is empty"),
        ({"row": "1001"}, "[1001] is empty"),
        ({"field": "votes"}, "votes: is empty"),
        ({"cure": "run it"}, "is empty. To mend: run it"),
        ({"row": "", "field": ""}, "is empty"),
    ],
)
def test_parts_that_are_not_given_leave_no_trace_in_the_message(parts, message):
    assert str(EquivoxError("is empty", **parts)) == message


def test_a_problem_that_ends_in_a_full_stop_gets_no_second_one():
    assert str(EquivoxError("Nothing here.", cure="look there")) == "Nothing here. To mend: look there"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_pickle_and_copy_with_all_its_parts(kind):
    error = kind("is empty", row="1001", field="votes", cure="run it again")
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(twin) is kind
        assert (twin.what, twin.row, twin.field, twin.cure) == ("is empty", "1001", "votes", "run it again")
        assert str(twin) == str(error)


def test_row_field_and_cure_are_given_by_name_only():
    with pytest.raises(TypeError):
        AudioError("is empty", "1001")  # type: ignore[misc]


def test_changes_name_what_was_and_what_is_and_three_at_most():
    assert changes({"a": 1, "b": 2}, {"b": 2, "a": 1}) == ""
    assert (
        changes({"a": 1, "gone": True}, {"a": 2, "new": "x"})
        == "a was 1, is 2, gone was True, is None, new was None, is 'x'"
    )
    assert changes({}, dict.fromkeys("dcba", 1)).count("was") == 3
