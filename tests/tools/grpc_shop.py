"""A gRPC service without generated code: messages are bytes. Imported by grpc_server.py and grpc_client.py."""

GET, LIST, CHAT, COLLECT, DELETE = ("/shop.Shop/" + name for name in ("Get", "List", "Chat", "Collect", "Delete"))
TRAILER = ("x-shop", "open")
