"""What a user reads when wrong input is refused: one line."""

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
    """The only line on stderr, after "error: ", of a command that ends with the exit code."""
    with pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == code
    line, newline, rest = capture.readouterr().err.partition("\n")
    assert line.startswith("error: ") and newline and not rest, line + newline + rest
    return line.removeprefix("error: ")
