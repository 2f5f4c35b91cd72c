#!/usr/bin/env python3
"""Calls the payment service by hand and prints one JSON line: the answer, or the gRPC status and its text.

    charge.py --to payment:50051 charge ORDER_ID AMOUNT_CENTS [CURRENCY]
    charge.py --to payment:50051 read ORDER_ID
    charge.py --to payment:50051 check

Exit code 0 when the call was answered, 1 when it ended with another status.
"""

import argparse
import json
import sys

import grpc

import messages

CALLS = {
    "charge": ("/payment.Payment/Charge", messages.ChargeReply),
    "read": ("/payment.Payment/Read", messages.ReadReply),
    "check": ("/grpc.health.v1.Health/Check", messages.HealthCheckResponse),
}


def main():
    parser = argparse.ArgumentParser(description="Calls the payment service.")
    parser.add_argument("--to", default="payment:50051", help="host:port (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds (default %(default)s)")
    calls = parser.add_subparsers(dest="call", required=True)
    charge = calls.add_parser("charge")
    charge.add_argument("order_id")
    charge.add_argument("amount_cents", type=int)
    charge.add_argument("currency", nargs="?", default="EUR")
    calls.add_parser("read").add_argument("order_id")
    calls.add_parser("check")
    arguments = parser.parse_args()

    request = {
        "charge": lambda: messages.ChargeRequest(
            order_id=arguments.order_id, amount_cents=arguments.amount_cents, currency=arguments.currency),
        "read": lambda: messages.ReadRequest(order_id=arguments.order_id),
        "check": messages.HealthCheckRequest,
    }[arguments.call]()
    path, reply = CALLS[arguments.call]
    with grpc.insecure_channel(arguments.to) as channel:
        call = channel.unary_unary(path, request_serializer=messages.Message.encode, response_deserializer=reply.decode)
        try:
            answer = call(request, timeout=arguments.timeout)
        except grpc.RpcError as error:
            print(json.dumps({"status": error.code().name, "details": error.details()}))
            sys.exit(1)
    fields = {"serving": answer.status == 1} if arguments.call == "check" else answer.as_dict()
    print(json.dumps({"status": "OK", **fields}))


if __name__ == "__main__":
    main()
