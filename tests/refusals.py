"""What a user reads when wrong input is refused: one line."""

import re

import pytest

from tubesynth.runtime.errors import EXIT_INPUT, InputError, run_command


def refusal(call, *words) -> str:
    """The message of the InputError, checked to be one line that holds all the words."""
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} not in {message!r}"
    return message


def refused_command(command, capture, code=EXIT_INPUT) -> str:
    """The last line on stderr, after "error: ", of a command that ends with the exit code; those
    before it are dated warnings.
    """
    with pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == code
    text = capture.readouterr().err
    *warnings, line = text.splitlines()
    assert line.startswith("error: ") and text.endswith("\n"), text
    assert all(re.match(r"[\d-]+ [\d:]+ warning: ", warning) for warning in warnings), text
    return line.removeprefix("error: ")
