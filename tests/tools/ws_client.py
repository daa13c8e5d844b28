"""URL: opens a WebSocket, has a text, a binary and a large message echoed, and closes it. Or says `refused STATUS BODY`."""

import sys

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

try:
    with connect(sys.argv[1], open_timeout=60, max_size=None, compression=None) as connection:
        for message in ("hello", b"\x00\xff", "x" * 1_000_000):
            connection.send(message)
            assert connection.recv(timeout=60) == message
            print("echoed", len(message), flush=True)
    print("closed", connection.close_code)
except InvalidStatus as error:
    print("refused", error.response.status_code, error.response.body.decode())
