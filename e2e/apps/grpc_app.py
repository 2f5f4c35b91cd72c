"""gRPC application of the end-to-end tests, on grpcio and plain bytes (no generated code).

grpc_app.py serve NAME PORT      prints "ready"
grpc_app.py call TARGET          makes one call of every sort, prints one line each; exit 1 if one is not as it must be
"""

import sys
from concurrent import futures

import grpc

SERVICE = "weft.e2e.Echo"


def serve(name, port):
    def unary(request, context):
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-app", name),))
        context.set_trailing_metadata((("x-trailer", sent.get("x-sent", "none")), ("x-raw-bin", b"\x00\xff")))
        return name.encode() + b": " + request

    def count(request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def chat(requests, context):
        for request in requests:
            yield request.upper()

    def fail(request, context):
        context.set_trailing_metadata((("x-trailer", "of a failure"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100 % \u00fc")

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if server.add_insecure_port(f"[::]:{port}") != port:
        sys.exit("cannot listen")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def call(target):
    def check(what, seen, expected):
        print(f"{what}: {seen}", flush=True)
        if seen != expected:
            sys.exit(f"{what}: expected {expected}")

    with grpc.insecure_channel(target, (("grpc.enable_http_proxy", 0),)) as channel:
        path = f"/{SERVICE}/"
        response, finished = channel.unary_unary(path + "Unary").with_call(
            b"hello", timeout=10, metadata=(("x-sent", "metadata"),)
        )
        check("unary", response.split(b": ")[1], b"hello")
        trailers = dict(finished.trailing_metadata())
        check("trailers", (trailers.get("x-trailer"), trailers.get("x-raw-bin")), ("metadata", b"\x00\xff"))
        check("large", len(channel.unary_unary(path + "Unary")(b"x" * 1_000_000, timeout=20)) > 1_000_000, True)
        check("stream", len(list(channel.unary_stream(path + "Count")(b"1000", timeout=20))), 1000)
        check("chat", list(channel.stream_stream(path + "Chat")(iter([b"a", b"b"]), timeout=10)), [b"A", b"B"])
        # Answers must come while the client is still sending.
        asked = []

        def questions():
            for question in (b"one", b"two"):
                asked.append(question)
                yield question
                while len(answered) < len(asked):
                    futures.wait([], timeout=0.01)

        answered = []
        for answer in channel.stream_stream(path + "Chat")(questions(), timeout=10):
            answered.append(answer)
        check("conversation", answered, [b"ONE", b"TWO"])
        try:
            channel.unary_unary(path + "Fail")(b"", timeout=10)
            sys.exit("Fail did not fail")
        except grpc.RpcError as error:
            check("status", (error.code().name, error.details()), ("FAILED_PRECONDITION", "not today: 100 % \u00fc"))
            check("status trailer", dict(error.trailing_metadata()).get("x-trailer"), "of a failure")
        try:
            channel.unary_unary(path + "Missing")(b"", timeout=10)
            sys.exit("Missing was there")
        except grpc.RpcError as error:
            check("missing", error.code().name, "UNIMPLEMENTED")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", name, port]:
            serve(name, int(port))
        case ["call", target]:
            call(target)
        case _:
            sys.exit(__doc__)
