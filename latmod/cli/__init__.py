"""The command line: a thin skin over the library. Results go to stdout, progress and warnings to stderr."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from latmod import __version__
from latmod.cli.deciding import compare, diff, plan
from latmod.cli.judging import evaluate, fit, repeat
from latmod.cli.measuring import adapt, demo, doctor, measure, runtimes, sweep, table
from latmod.cli.predicting import inspect, predict
from latmod.errors import LatmodError

EXIT_INTERRUPTED = 130


class _Group(click.Group):
    """Catch every error once, and show commands in the order of a user's work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        trace = "--traceback" in sys.argv
        try:
            return super().main(args, **{**extra, "standalone_mode": False})
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted; what was finished is kept: start the same command again to resume", err=True)
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except LatmodError as error:
            if trace:
                traceback.print_exc()
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="latmod")
@click.option("--traceback", "_traceback", is_flag=True, help="Show where an error came from.")
def main(_traceback: bool) -> None:
    """Predict how long a neural network takes to run, per runtime, from its .onnx file."""


for _command in (
    predict, inspect, compare, plan, diff, measure, adapt, sweep, table, fit, evaluate, repeat, runtimes, doctor, demo,
):  # fmt: skip
    main.add_command(_command)
