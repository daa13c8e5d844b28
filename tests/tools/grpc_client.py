"""HOST:PORT: calls every method of the shop. One line each: the method, then what came, or the status and its text."""

import sys

import grpc
from grpc_shop import CHAT, DELETE, GET, LIST, TRAILER

channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials())


def said(method, call):
    try:
        print(method, "ok", call(), flush=True)
    except grpc.RpcError as error:
        print(method, error.code().name, error.details(), flush=True)


def unary(method):
    def call():
        answer, context = channel.unary_unary(method).with_call(b"apples", timeout=60)
        assert TRAILER in [tuple(pair) for pair in context.trailing_metadata()], context.trailing_metadata()
        return answer.decode()

    return call


def chat():
    """Each question only after the answer to the one before: nothing may be held back."""
    from queue import Queue

    questions = Queue()
    answers = channel.stream_stream(CHAT)(iter(questions.get, None), timeout=60)
    heard = []
    for n in range(3):
        questions.put(b"%d" % n)
        heard.append(next(answers).decode())
    questions.put(None)
    assert next(answers, None) is None
    return ", ".join(heard)


said(GET, unary(GET))
said(LIST, lambda: ", ".join(item.decode() for item in channel.unary_stream(LIST)(b"apple", timeout=60)))
said(CHAT, chat)
said(DELETE, unary(DELETE))
