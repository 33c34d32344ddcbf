"""The command line as a whole: exit codes, one line for an error, and what happens without its
extra."""

from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import __version__, cli, errors
from peertalk.cli import outcome
from peertalk.cli.options import NODE_SETTINGS, console, node_options, readable
from peertalk.config import settings

COMMANDS = ("demo", "peers", "send", "listen", "bench", "sim", "info")


def test_help_lists_every_command(capsys, monkeypatch):
    """A command that help does not name is not there for anybody."""
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_the_version_is_one_line(capsys):
    """The first thing that anybody is asked who reports a problem."""
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"peertalk {__version__}\n"


def test_each_command_has_json(capsys):
    """Programs read what people read."""
    for command in COMMANDS:
        assert cli.run([command, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["peers", "--bogus"],
        ["peers", "--port", "99999"],
        ["peers", "--timeout", "soon"],
        ["send", "alone"],
        ["listen", "--count", "0"],
        ["send", "--to-address", "nowhere", "text"],
        ["demo", "there/is/no/such/path"],
        ["demo", "--timeout", "soon"],
        ["info", "--core", "fast"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_at_most_one_line(arguments, capsys, monkeypatch):
    """Scripts tell a typing error from a failure by the code; a traceback would tell the user
    nothing."""
    monkeypatch.setenv("PEERTALK_BIND", "127.0.0.1")
    assert cli.run(arguments) == outcome.WRONG_USAGE
    complaint = capsys.readouterr().err
    assert complaint.count("\n") <= 1
    assert "Traceback" not in complaint


def test_an_error_names_the_option_that_was_wrong(capsys):
    """One line has to be enough to put it right."""
    assert cli.run(["peers", "--port", "99999"]) == 2
    assert "port=99999" in capsys.readouterr().err


def test_a_wrong_value_in_the_environment_is_named_with_its_variable(capsys, monkeypatch):
    """Nobody remembers what their shell profile exports."""
    monkeypatch.setenv("PEERTALK_PORT", "many")
    assert cli.run(["info"]) == 2
    assert "PEERTALK_PORT=many" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_the_command_line_says_how_to_install_it(missing, start_python):
    """The library works without typer and rich; whoever calls the command then must not meet a
    traceback."""
    process = start_python(
        "-c",
        (
            f"import sys; sys.modules[{missing!r}] = None; from peertalk.cli import main; "
            "main(['info'])"
        ),
    )
    complaint = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert complaint == (
        "peertalk: the command line needs the extra 'cli'; its packages come with: pip install "
        "typer rich\n"
    )


def test_ctrl_c_while_a_command_is_loaded_is_no_traceback(start_python):
    """Loading takes longer than most commands: many an interruption strikes there."""
    process = start_python(
        "-c",
        (
            "import signal, sys; from peertalk.cli import main; "
            "sys.addaudithook(lambda event, seen: event == 'import' and seen[0] == 'typer' and "
            "signal.raise_signal(signal.SIGINT)); main(['info'])"
        ),
    )
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 130


def test_importing_the_command_line_imports_neither_typer_nor_rich(start_python):
    """The extra is imported late, so that the library and the demonstration's processes start
    without it."""
    process = start_python(
        "-c",
        (
            "import sys, peertalk.cli, peertalk.cli.transfer; print([m for m in ('typer', 'rich', "
            "'click') if m in sys.modules])"
        ),
    )
    assert process.communicate(timeout=30)[0] == "[]\n"


def test_a_command_that_is_named_loads_no_other(start_python):
    """Others take longer to load than most commands to run; without a name all of them are
    listed."""
    program = (
        "import sys, peertalk.cli; peertalk.cli.run(['listen', '--help']); "
        "print({'demo', 'sim'} & {m.removeprefix('peertalk.cli.') for m in sys.modules})"
    )
    output = start_python("-c", program).communicate(timeout=30)[0]
    assert "--count" in output and output.endswith("set()\n")


def test_errors_have_the_exit_code_of_their_kind():
    """2 is for whoever typed, 1 for the network, 3 when nobody was there."""
    assert outcome.exit_code(errors.InvalidArgument("x")) == 2
    assert outcome.exit_code(errors.ConnectionRefused("x")) == 1
    assert outcome.exit_code(outcome.CommandFailed("x", outcome.NOBODY)) == 3


def test_a_reader_that_goes_away_is_no_traceback(fork_python):
    """`peertalk info | head -1` is how people look."""
    process = fork_python("-m", "peertalk", "info")
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("closed", [(0, 2), (1,)])
def test_a_command_runs_without_standard_streams(closed, start_python):
    """As a daemon starts it. A traceback said that None has no flush()."""
    code = (
        "import os, sys\n"
        f"for each in {closed}: os.close(each)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'peertalk', 'info'])"
    )
    out, err = (process := start_python("-c", code)).communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert ("peertalk" in out) == (1 not in closed)


def test_python_m_peertalk_is_the_command_line(start_python):
    """Where the script is not on PATH, this is the way in."""
    out, err = (process := start_python("-m", "peertalk", "info", "--help")).communicate(timeout=60)
    assert process.returncode == 0 and "peertalk info" in out, err


def test_every_chosen_setting_becomes_an_option_with_its_variable(capsys, monkeypatch):
    """The settings are described once; the command line must not know others, nor fewer."""
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.run(["peers", "--help"]) == 0
    text = capsys.readouterr().out
    for name in NODE_SETTINGS:
        assert "--" + name.replace("_", "-") in text
        assert f"PEERTALK_{name.upper()}" in text
    assert set(NODE_SETTINGS) <= {setting.name for setting in settings()}


def test_a_setting_that_is_on_can_be_switched_off(capsys, monkeypatch):
    """--discovery alone could only say what is the default already."""
    monkeypatch.setenv("PEERTALK_BIND", "127.0.0.1")
    assert cli.run(["info", "--json", "--no-discovery", "--async-send"]) == 0
    told = json.loads(capsys.readouterr().out)["settings"]
    assert told["discovery"] == {"value": False, "from": "argument"}
    assert told["async_send"] == {"value": True, "from": "argument"}


def test_an_option_that_is_not_given_is_none():
    """Only then do the environment and the default have their turn."""
    seen = []

    @node_options("port", "interfaces")
    def command(word: str, *, options: dict) -> None:
        seen.append((word, options))

    command(word="a", port=None, interfaces=None)
    command(word="b", port=7, interfaces="lo, eth0")
    assert seen == [
        ("a", {"port": None, "interfaces": None}),
        ("b", {"port": 7, "interfaces": ("lo", "eth0")}),
    ]
    assert list(inspect.signature(command).parameters) == ["word", "port", "interfaces"]


@given(st.text())
def test_text_from_the_network_cannot_command_the_terminal(text):
    """A peer's name could otherwise clear the screen, or worse."""
    assert all(one.isprintable() or one == "\t" for one in readable(text))


def test_no_color_means_no_escape_sequences(monkeypatch):
    """NO_COLOR is how people ask for plain text everywhere."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = console()
    with screen.capture() as captured:
        screen.print("plain", style="bold red")
    assert captured.get() == "plain\n"


def test_json_shows_what_a_terminal_would_obey(capsys):
    """json leaves the controls above 0x1f as they are, and names come from strangers."""
    from peertalk.cli.options import print_json

    print_json({"name": "a\x9b31m\x7f\u2028\u00e9\n"})
    shown = capsys.readouterr().out
    assert shown == '{"name": "a\\u009b31m\\u007f\\u2028\u00e9\\n"}\n'
    assert json.loads(shown) == {"name": "a\x9b31m\x7f\u2028\u00e9\n"}
