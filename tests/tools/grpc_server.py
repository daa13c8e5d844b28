"""CERTIFICATE KEY: serves the shop over TLS, says `ready PORT`, then one line for every call that arrives."""

import sys
from concurrent import futures

import grpc
from grpc_shop import CHAT, COLLECT, DELETE, GET, LIST, TRAILER


def arrived(method, context):
    print("call", method, flush=True)
    context.set_trailing_metadata((TRAILER,))


class Shop(grpc.GenericRpcHandler):
    def service(self, call):
        method = call.method

        def unary(request, context):
            arrived(method, context)
            return b"got " + request

        def stream(request, context):
            arrived(method, context)
            yield from (request + b" " + str(n).encode() for n in range(3))

        def chat(requests, context):
            arrived(method, context)
            for request in requests:
                yield b"heard " + request

        def collect(requests, context):
            arrived(method, context)
            context.add_callback(lambda: print("over", flush=True))
            for request in requests:
                print("item", request.decode(), flush=True)
            return b"collected"

        return {
            GET: grpc.unary_unary_rpc_method_handler(unary),
            DELETE: grpc.unary_unary_rpc_method_handler(unary),
            LIST: grpc.unary_stream_rpc_method_handler(stream),
            COLLECT: grpc.stream_unary_rpc_method_handler(collect),
            CHAT: grpc.stream_stream_rpc_method_handler(chat),
        }.get(method)


server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Shop(),))
certificate, key = (open(path, "rb").read() for path in sys.argv[1:3])
port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
server.start()
print("ready", port, flush=True)
server.wait_for_termination()
