"""The exception tree: families, natural parents and the codes of the C core."""

from __future__ import annotations

import pickle

import pytest

from peertalk import errors

EVERY_CLASS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.PeerTalkError)
]
FAMILIES = (
    errors.LocalError,
    errors.RemoteError,
    errors.NetworkError,
    errors.WouldBlock,
    errors.InternalError,
    errors.OutOfMemory,
)
NATURAL = {
    errors.InvalidArgument: ValueError,
    errors.WrongType: TypeError,
    errors.InvalidState: RuntimeError,
    errors.NotSupported: NotImplementedError,
    errors.PeerNotFound: KeyError,
    errors.MessageTooLarge: ValueError,
    errors.OutOfMemory: MemoryError,
    errors.NetworkFailure: ConnectionError,
    errors.ConnectionRefused: ConnectionRefusedError,
    errors.ConnectionClosed: ConnectionError,
    errors.NotConnected: ConnectionError,
    errors.NoNetwork: ConnectionError,
    errors.AddressInUse: OSError,
    errors.Timeout: TimeoutError,
    errors.PlatformError: OSError,
    errors.WouldBlock: BlockingIOError,
    errors.BadCrc: ValueError,
    errors.BadMagic: ValueError,
    errors.Truncated: ValueError,
    errors.BadVersion: ValueError,
    errors.InternalError: RuntimeError,
}


@pytest.mark.parametrize("kind", EVERY_CLASS)
def test_every_class_but_the_base_belongs_to_exactly_one_family(kind):
    """The family says who has to act; two families would say two things."""
    if kind is not errors.PeerTalkError:
        assert sum(issubclass(kind, family) for family in FAMILIES) == 1


@pytest.mark.parametrize(("kind", "parent"), NATURAL.items())
def test_each_class_is_caught_by_its_natural_built_in(kind, parent):
    """A program that already handles ConnectionError or TimeoutError needs no word about
    peertalk."""
    with pytest.raises(parent):
        raise kind("text")


@pytest.mark.parametrize("kind", EVERY_CLASS)
def test_message_code_and_peer_survive_construction_and_pickling(kind):
    """OSError and its kin eat constructor arguments; a process pool sends exceptions by pickle."""
    error = kind("what happened", code=-42, peer="ada")
    for seen in (error, pickle.loads(pickle.dumps(error))):
        assert (type(seen), str(seen), seen.code, seen.peer) == (kind, "what happened", -42, "ada")


def test_would_block_says_what_is_full():
    """The caller chooses what to do by the reason."""
    assert errors.WouldBlock("full", reason="slots").reason == "slots"
    assert errors.WouldBlock("full").reason == "queue"


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_the_class_of_a_code_keeps_the_code(code):
    """One class serves several codes, so the number must travel with the instance."""
    error = errors.from_code(code, "text", "ada")
    assert (type(error), error.code, error.peer) == (errors.BY_CODE[code], code, "ada")


@pytest.mark.parametrize("code", [-1, -16, -20, -21, -22, -23, -77])
def test_whatever_a_decoder_reports_is_the_peers_fault(code):
    """Bytes from outside must never look like a wrong call of ours."""
    error = errors.from_decoder(code, "text")
    assert isinstance(error, errors.ProtocolError)
    assert isinstance(error, errors.RemoteError)
    assert error.code == code


def test_a_code_that_nobody_knows_is_our_fault():
    """A number without a class is a bug of ours, and says so."""
    assert isinstance(errors.from_code(-1234, "text"), errors.InternalError)


def test_every_code_up_to_27_has_a_class():
    """A code without a class would surface as InternalError and blame us for the world's
    failures."""
    assert set(errors.BY_CODE) == {*range(-27, 0), -99}
