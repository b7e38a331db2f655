"""How the command line ends when its user has had enough."""

import shlex
import subprocess
import sys

import pytest

ENDINGS = {"KeyboardInterrupt": 130, "BrokenPipeError": 141}


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose function has this body."""
    code = (
        "import sys; import harness.cli as cli\n"
        f"def command(options): {body}\n"
        "cli._COMMANDS['plan'] = (command, ())\n"
        "sys.exit(cli.main(['plan']))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("error", ENDINGS)
def test_it_ends_without_a_traceback(error):
    done = run(f"raise {error}")
    assert done.returncode == ENDINGS[error]
    assert done.stderr.count("\n") == (error == "KeyboardInterrupt")


def test_a_reader_that_leaves_early_is_no_error():
    """The pipe is closed before the first line is written."""
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m harness plan | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("141\n", "")
