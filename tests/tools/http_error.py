"""What a Python library's error says of a GET that is refused: LIBRARY URL."""

import sys

library, url = sys.argv[1:]


def with_urllib():
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(url, timeout=60)
    except urllib.error.HTTPError as error:
        return error


def with_requests():
    import requests

    try:
        requests.get(url, timeout=60).raise_for_status()
    except requests.HTTPError as error:
        return error


def with_httpx():
    import httpx

    try:
        httpx.get(url, timeout=60).raise_for_status()
    except httpx.HTTPStatusError as error:
        return error


def with_aiohttp():
    import asyncio

    import aiohttp

    async def call():
        try:
            async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url):
                pass
        except aiohttp.ClientResponseError as error:
            return error

    return asyncio.run(call())


def with_http_client():
    import http.client
    import urllib.parse

    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPSConnection(place.netloc, timeout=60)
    connection.request("GET", place.path)
    return connection.getresponse().reason


print(globals()[f"with_{library.replace('.', '_')}"]())
