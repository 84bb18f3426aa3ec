# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server that answers every request with the same bytes, whatever they are, and hangs up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Callable

Wrap = Callable[[Any], Any]
PATIENCE_S = 10


@contextmanager
def answering(data: bytes) -> Iterator[tuple[str, Wrap]]:
    """Give its URL, and what keeps an opener from asking any other server that it is sent to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        over = threading.Event()

        def serve() -> None:
            while True:
                line, _address = listener.accept()
                if over.is_set():
                    line.close()
                    return
                with line, suppress(OSError):
                    line.settimeout(PATIENCE_S)
                    line.sendall(data)
                    line.shutdown(socket.SHUT_WR)
                    # Until the client goes: a reset would take from it what it has not read yet.
                    while line.recv(65536):
                        pass

        def only_here(opener: Any) -> Any:
            def ask(there: str, **more: Any) -> Any:
                if not there.startswith(url.removesuffix("file")):
                    raise OSError("it is elsewhere")
                return opener(there, **more)

            return ask

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        try:
            yield url, only_here
        finally:
            over.set()
            with suppress(OSError):
                socket.create_connection(listener.getsockname()).close()
            server.join()
