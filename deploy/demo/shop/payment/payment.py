#!/usr/bin/env python3
"""The payment service: charges over gRPC, one row per charge in its own SQLite file.

payment.Payment/Charge, payment.Payment/Read, grpc.health.v1.Health/Check. Needs grpcio.
A charge is committed to disk before it is answered, and is idempotent by order id:
asking again with the same amount gives the first answer, with another amount FAILED_PRECONDITION.
Settings come from the environment: BIND, INSTANCE, DATABASE, LIMIT_CENTS, LOG.
"""

import concurrent.futures
import datetime
import json
import os
import re
import secrets
import signal
import socket
import sqlite3
import sys
import threading
import time

import grpc

import messages

WORKERS = 16
MAX_CALLS = 256
DRAIN_SECONDS = 1.5
BUSY_SECONDS = 2.0


def timestamp():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Log:
    """One JSON object per line on stdout; `quiet` leaves out the line of each call."""

    def __init__(self, instance, quiet):
        self.instance, self.quiet, self.lock = instance, quiet, threading.Lock()

    def write(self, level, message, **fields):
        line = json.dumps(
            {"timestamp": timestamp(), "level": level, "service": "payment", "instance": self.instance,
             "message": message, **fields}, ensure_ascii=False)
        with self.lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def call(self, **fields):
        if not self.quiet:
            self.write("INFO", "call", **fields)


class Refused(Exception):
    """A call that is answered with a gRPC status instead of a message."""

    def __init__(self, code, details):
        super().__init__(details)
        self.code, self.details = code, details


class Ledger:
    """The SQLite file. One connection per worker thread; several processes may share the file."""

    def __init__(self, path):
        self.path, self.local, self.ready = path, threading.local(), False

    def connection(self):
        if not hasattr(self.local, "connection"):
            db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            db.execute("PRAGMA synchronous=FULL")  # in WAL mode only FULL syncs at each commit
            self.local.connection = db
        return self.local.connection

    def prepare(self):
        """Creates the table; doing it again, or in two processes at once, changes nothing."""
        db = self.connection()
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE IF NOT EXISTS charges (charge_id TEXT PRIMARY KEY, order_id TEXT NOT NULL UNIQUE,"
                   " amount_cents INTEGER NOT NULL, currency TEXT NOT NULL, accepted INTEGER NOT NULL,"
                   " created_ms INTEGER NOT NULL)")
        self.ready = True

    def healthy(self):
        if not self.ready:
            return False
        try:
            self.connection().execute("SELECT 1 FROM charges LIMIT 1").fetchone()
            return True
        except sqlite3.Error:
            return False

    def read(self, order_id):
        row = self.connection().execute(
            "SELECT charge_id, order_id, amount_cents, currency, accepted, created_ms FROM charges WHERE order_id = ?",
            (order_id,)).fetchone()
        return row and messages.ReadReply(
            charge_id=row[0], order_id=row[1], amount_cents=row[2], currency=row[3], accepted=bool(row[4]),
            created_ms=row[5])

    def charge(self, request, accepted):
        """Inserts the charge, or finds the one this order has. The insert alone is one durable transaction."""
        self.connection().execute(
            "INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (order_id) DO NOTHING",
            ("c-" + secrets.token_hex(12), request.order_id, request.amount_cents, request.currency, int(accepted),
             round(time.time() * 1000)))
        return self.read(request.order_id)


class Payment:
    """The methods; each takes a decoded message and returns one, or raises Refused."""

    def __init__(self, ledger, instance, limit_cents):
        self.ledger, self.instance, self.limit_cents = ledger, instance, limit_cents
        self.draining = False

    def charge(self, request):
        if not re.fullmatch(r"[\x21-\x7e]{1,128}", request.order_id):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "order_id: expected 1 to 128 printable characters")
        if not 0 < request.amount_cents <= 1_000_000_000:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "amount_cents: expected 1 to 1000000000")
        if not re.fullmatch(r"[A-Z]{3}", request.currency):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "currency: expected three capital letters")
        row = self.ledger.charge(request, accepted=request.amount_cents <= self.limit_cents)
        if (row.amount_cents, row.currency) != (request.amount_cents, request.currency):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION,
                          f"order_id: {request.order_id} was charged {row.amount_cents} {row.currency} before")
        return messages.ChargeReply(charge_id=row.charge_id, accepted=row.accepted, instance=self.instance)

    def read(self, request):
        row = self.ledger.read(request.order_id)
        if row is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"no charge for order {request.order_id}")
        return row

    def check(self, request):
        if request.service not in ("", "payment.Payment"):
            raise Refused(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        serving = self.ledger.healthy() and not self.draining
        return messages.HealthCheckResponse(status=1 if serving else 2)


def unary(log, name, method, request_class):
    """A generic gRPC handler around one method. Decoding happens here, so that bad bytes are the caller's fault."""

    def handle(data, context):
        started, code, details, reply = time.monotonic(), grpc.StatusCode.OK, "", b""
        fields = {}
        try:
            request = request_class.decode(data)
            fields = {"order_id": request.order_id} if hasattr(request, "order_id") else {}
            reply = method(request).encode()
        except messages.DecodeError as error:
            code, details = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Refused as refused:
            code, details = refused.code, refused.details
        except sqlite3.Error as error:
            code, details = grpc.StatusCode.UNAVAILABLE, f"database: {error}"
        if name != "Check":
            metadata = {key: value for key, value in context.invocation_metadata() if key == "traceparent"}
            log.call(method=name, status=code.name, ms=round((time.monotonic() - started) * 1000, 2),
                     traceparent=metadata.get("traceparent"), **fields)
        context.set_code(code)
        context.set_details(details)
        return reply

    return grpc.unary_unary_rpc_method_handler(handle)


def prepare(ledger, log):
    """Prepares the database in the background until it works; the health check says no meanwhile."""
    while True:
        try:
            ledger.prepare()
            log.write("INFO", "database ready", database=ledger.path)
            return
        except sqlite3.Error as error:
            log.write("WARN", "database not ready", database=ledger.path, error=str(error))
            ledger.local = threading.local()
            time.sleep(0.2)


def main():
    bind = os.environ.get("BIND", "0.0.0.0:50051")
    instance = os.environ.get("INSTANCE") or socket.gethostname()
    limit = os.environ.get("LIMIT_CENTS", "500000")
    if not limit.isdecimal():
        sys.exit(f"LIMIT_CENTS: expected a whole number, not {limit!r}")
    # Blocked in every thread and awaited below: a handler would run between any two lines, with locks held.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    log = Log(instance, quiet=os.environ.get("LOG", "info") == "warn")
    ledger = Ledger(os.environ.get("DATABASE", "payment.db"))
    payment = Payment(ledger, instance, int(limit))
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(WORKERS), maximum_concurrent_rpcs=MAX_CALLS,
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024)])
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("payment.Payment", {
            "Charge": unary(log, "Charge", payment.charge, messages.ChargeRequest),
            "Read": unary(log, "Read", payment.read, messages.ReadRequest)}),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", {
            "Check": unary(log, "Check", payment.check, messages.HealthCheckRequest)})))
    try:
        port = server.add_insecure_port(bind)
    except RuntimeError as error:
        sys.exit(f"BIND: cannot listen on {bind}: {error}")
    threading.Thread(target=prepare, args=(ledger, log), daemon=True).start()
    server.start()
    log.write("INFO", "listening", address=f"{bind.rpartition(':')[0]}:{port}")
    signal.sigwait(signals)
    log.write("INFO", "stopping")
    payment.draining = True
    server.stop(DRAIN_SECONDS).wait()
    log.write("INFO", "stopped")
    os._exit(0)  # a worker may still be at work in the interpreter; every commit is on disk already


if __name__ == "__main__":
    main()
