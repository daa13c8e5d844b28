"""LIBRARY URL: reads an event stream, one line on stdout for each as it comes."""

import sys

library, url = sys.argv[1:]


def events():
    if library == "requests":
        import requests

        with requests.get(url, stream=True, timeout=60) as answer:
            print("status", answer.status_code, flush=True)
            yield from answer.iter_lines(chunk_size=1, decode_unicode=True)
    else:
        import httpx

        with httpx.stream("GET", url, timeout=60) as answer:
            print("status", answer.status_code, flush=True)
            yield from answer.iter_lines()


for line in events():
    if line:
        print(line, flush=True)
