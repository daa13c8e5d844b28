"""One request by a Python library, as its users write it: LIBRARY METHOD URL. Prints the status, then the body."""

import sys

library, method, url = sys.argv[1:]


def with_requests():
    import requests

    answer = requests.request(method, url, timeout=60)
    return answer.status_code, answer.text


def with_httpx(http2=False):
    import httpx

    with httpx.Client(http2=http2, timeout=60) as client:
        answer = client.request(method, url)
        assert not http2 or answer.http_version == "HTTP/2", answer.http_version
        return answer.status_code, answer.text


def with_httpx_http2():
    return with_httpx(http2=True)


def with_urllib():
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def with_urllib3():
    import urllib3

    answer = urllib3.PoolManager().request(method, url, timeout=60)
    return answer.status, answer.data.decode()


def with_aiohttp():
    import asyncio

    import aiohttp

    async def call():
        async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
            return answer.status, await answer.text()

    return asyncio.run(call())


def with_boto3():
    import boto3
    import botocore.awsrequest
    import botocore.session

    # The SDK's own transport, with the SDK's own idea of where CA bundles are.
    session = boto3.session.Session(aws_access_key_id="id", aws_secret_access_key="secret", region_name="eu-test-1")
    client = session.client("s3", endpoint_url=url)
    request = botocore.awsrequest.AWSRequest(method=method, url=url).prepare()
    answer = client._endpoint.http_session.send(request)
    return answer.status_code, answer.text


status, body = globals()[f"with_{library}"]()
print(status)
print(body)
