"""The kit itself, where a mistake in it would let a test pass."""

from __future__ import annotations

import inspect
import signal
import subprocess

import pytest
from kit.tables import crossed, each_row


def test_a_table_names_each_row_that_fails_and_tries_all():
    """A table that stopped at the first row, or hid which, would cost what single cases gave."""
    tried = []

    @each_row("value", {"one": 1, "two": 2, "three": 3, "four": 4})
    def odd(given, value):
        tried.append((given, value))
        if value == 2:
            with pytest.raises(ValueError):
                pass
        assert value % 2

    assert list(inspect.signature(odd).parameters) == ["given"]
    with pytest.raises(pytest.fail.Exception) as caught:
        odd(given="fixture")
    assert caught.value.__notes__ == ["2 of 4 rows failed: two, four"]
    assert tried == [("fixture", value) for value in (1, 2, 3, 4)]


def test_a_table_without_rows_is_no_test():
    """A walk that finds nothing passes."""
    with pytest.raises(AssertionError, match="proves nothing"):
        each_row("value", {})


def test_crossed_cases_have_each_value_and_in_a_whole_run_each_pair():
    """A value that no case has is a test that nobody runs."""
    three, two = {"a": 1, "b": 2, "c": 3}, {"x": 8, "y": 9}
    few = [case.values for case in crossed(three, two, whole=False)]
    assert few == [(1, 8), (2, 9), (3, 8)]
    assert [case.values for case in crossed(two, three, whole=False)] == [(8, 1), (9, 2), (8, 3)]
    whole = crossed(three, two, whole=True)
    assert [case.values for case in whole] == [(1, 8), (1, 9), (2, 8), (2, 9), (3, 8), (3, 9)]
    assert [case.id for case in whole][:2] == ["a-x", "a-y"]


ECHO = "import os, sys; print(sys.stdin.read(), *sys.argv[1:], os.environ['ONLY_HERE'])"


def test_a_forked_process_has_arguments_streams_and_an_environment_of_its_own(fork_python):
    """What one of them had must not be there for the next."""
    process = fork_python("-c", ECHO, "one", "two", env={"ONLY_HERE": "here"})
    assert process.communicate("text", timeout=20) == ("text one two here\n", "")
    assert process.returncode == 0
    process = fork_python("-c", ECHO)
    assert "KeyError: 'ONLY_HERE'" in process.communicate(timeout=20)[1]
    assert process.returncode == 1


def test_a_forked_process_is_a_text_a_module_or_a_file_and_its_warnings_are_what_was_asked(
    fork_python, tmp_path
):
    """A test that thinks that warnings are errors must not pass when they are nothing."""
    (tmp_path / "beside.py").write_text("WORD = 'beside'")
    warns = tmp_path / "warns.py"
    warns.write_text("import sys, warnings; from beside import WORD; print(*sys.argv, WORD)\n")
    process = fork_python("-W", "error", str(warns), "one")
    assert process.communicate(timeout=20) == (f"{warns} one beside\n", "")
    warns.write_text(warns.read_text() + "warnings.warn('x', ResourceWarning)\n")
    for action, code in {"error": 1, "ignore::ResourceWarning": 0, "error::UserWarning": 0}.items():
        process = fork_python("-W", action, str(warns))
        process.communicate(timeout=20)
        assert process.returncode == code
    process = fork_python("-m", "peertalk", "--version")
    assert process.communicate(timeout=20)[0].startswith("peertalk ")


def test_a_forked_process_ends_as_others_do(fork_python):
    """By itself with its code, by a signal, or not yet."""
    process = fork_python("-c", "import sys; sys.exit(3)")
    assert process.wait(20) == 3 and process.poll() == 3
    process = fork_python("-c", "import sys; print('here'); sys.stdin.read()")
    assert process.stdout.readline() == "here\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT
    assert process.stderr.read().endswith("KeyboardInterrupt\n")


def test_a_forked_process_holds_its_three_streams_and_no_more(fork_python):
    """A pipe of another process that it held would keep that one waiting for its end."""
    other = fork_python("-c", "import sys; sys.stdin.read()")
    process = fork_python("-c", "import os; print(*sorted(os.listdir('/dev/fd'), key=int))")
    assert process.communicate(timeout=20)[0] == "0 1 2 3\n", "3: the folder itself"
    assert other.communicate(timeout=20) == ("", "") and other.returncode == 0


def test_a_forked_process_lives_in_the_network_that_is_named(fork_python, netns):
    """Else nodes of two hosts would meet in this one."""
    source = "import socket; print(*sorted(name for _, name in socket.if_nameindex()))"
    netns.ip("link", "add", "only0", "type", "veth", "peer", "name", "only1")
    process = fork_python("-c", source, prefix=netns.prefix)
    assert process.communicate(timeout=20) == ("lo only0 only1\n", "")
