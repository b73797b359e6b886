"""Tokens as they are made, spelled and recognised."""

import re
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.access.policy import SCOPES, Role
from jobworker.access.principal import Scope
from jobworker.access.tokens import DEFAULT_SCOPES, Token, check_token_id, format_scopes, parse_scopes
from jobworker.core.errors import JobError


def test_a_token_is_spelled_as_scanners_look_for_it():
    text = Token.new().reveal()
    assert re.fullmatch(r"jw1_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", text)


def test_a_token_survives_its_spelling():
    token = Token.new()
    again = Token.parse(token.reveal())
    assert again is not None
    assert (again.id, again.secret_hash(), again.reveal()) == (token.id, token.secret_hash(), token.reveal())


def test_no_two_tokens_are_alike():
    texts = {Token.new().reveal() for _ in range(1000)}
    assert len({text.split("_")[1] for text in texts}) == len({text.split("_")[2] for text in texts}) == 1000


@given(st.data())
def test_a_token_with_one_character_wrong_is_none(data):
    """A5: the checksum drops it without a look-up."""
    text = Token.new().reveal()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda character: character != text[place]))
    assert Token.parse(text[:place] + other + text[place + 1 :]) is None
    assert Token.parse(text) is not None  # positive control


@pytest.mark.parametrize(
    "change", [str.upper, str.lower, lambda text: text + "\n", lambda text: " " + text, lambda _: ""]
)
def test_what_is_not_a_token_to_the_letter_is_none(change):
    text = Token.new().reveal()
    assert Token.parse(change(text)) is None


def test_a_secret_is_proven_by_its_own_hash_only():
    token, other = Token.new(), Token.new()
    assert token.is_proven_by(token.secret_hash())  # positive control
    assert not token.is_proven_by(other.secret_hash())
    assert not token.is_proven_by(b"")


def test_a_token_shows_its_secret_to_nobody_who_does_not_ask():
    token = Token.new()
    secret = token.reveal().split("_")[2]
    for shown in (repr(token), str(token), f"{token}", repr([token]), repr({"token": token})):
        assert secret not in shown
        assert token.id in shown


def test_the_secret_has_as_much_chance_as_its_hash():
    alphabet = 62
    assert alphabet**43 > 2**256
    assert secrets.SystemRandom  # where it comes from


def test_scopes_survive_their_spelling():
    assert parse_scopes(format_scopes(Scope).split()) == set(Scope)
    assert format_scopes([Scope.JOBS_STOP, Scope.JOBS_READ]) == "jobs:read jobs:stop"
    with pytest.raises(JobError, match="jobs:write"):
        parse_scopes(["jobs:write"])


def test_a_new_token_can_do_what_its_users_role_can():
    assert set(DEFAULT_SCOPES) == set(Role)
    assert set(SCOPES.values()) - {None} <= DEFAULT_SCOPES[Role.ADMIN]
    assert Scope.ADMIN not in DEFAULT_SCOPES[Role.USER]


def test_a_token_in_place_of_its_id_is_refused_without_being_shown():
    token = Token.new()
    assert check_token_id(token.id) == token.id
    with pytest.raises(JobError) as refused:
        check_token_id(token.reveal())
    assert "'...'" in refused.value.message
    with pytest.raises(JobError, match="token id: 'nosuchid' is not valid"):  # too short for a secret
        check_token_id("nosuchid")
