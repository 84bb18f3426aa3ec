"""Where besom begins: signals are noted from here on, before the imports that take a while."""

import gc
import sys


def main() -> int:
    """Run the command line; returns its exit status. A signal that comes meanwhile is for the command."""
    noted: list[int] = []
    try:
        import signal

        # As Shutdown.listen() has it; SIGTERM last: who sees that it is caught knows the same of the others.
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, lambda number, _frame: noted.append(number))
        # Whoever started this may have blocked signals, and that is inherited, daemon(7).
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    except KeyboardInterrupt:
        print("besom: Interrupted. Nothing was begun; run it again.", file=sys.stderr)
        return 130

    # In a zipapp, what is imported after it is compiled once, not twice.
    import besom  # noqa: F401

    from .cli import main as command_line

    try:
        return command_line(noted=noted)
    finally:
        # Of all that was imported nothing is to be looked through for cycles as Python ends, which takes as
        # long as a third of the imports did.
        gc.freeze()
        # What is done is done: the status stands, whatever comes while Python takes itself down.
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)
