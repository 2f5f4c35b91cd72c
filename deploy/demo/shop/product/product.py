#!/usr/bin/env python3
"""The product service: a catalogue over HTTP/1.1, kept in its own SQLite file.

GET / (a page for browsers, page.html), GET /products, GET /products/{id}, GET
/healthz. Standard library only. Every JSON answer names the instance (field `instance`, header `x-instance`) and the
version (field `version`, header `x-version`); v2 adds `recommended`.
Settings come from the environment: BIND, VERSION, INSTANCE, DATABASE, LOG.
"""

import datetime
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import socketserver
import sqlite3
import sys
import threading
import time

CATALOGUE = [
    ("p1", "Coffee beans 1 kg", "coffee", 1890),
    ("p2", "Espresso cups, set of 4", "coffee", 2450),
    ("p3", "Hand grinder", "coffee", 7900),
    ("p4", "Green tea 100 g", "tea", 950),
    ("p5", "Teapot", "tea", 3490),
    ("p6", "Tea strainer", "tea", 690),
    ("p7", "Notebook A5", "paper", 790),
    ("p8", "Fountain pen", "paper", 4200),
    ("p9", "Ink 50 ml", "paper", 1150),
    ("p10", "Wool blanket", "home", 8900),
    ("p11", "Reading lamp", "home", 5600),
    ("p12", "Beeswax candle", "home", 1250),
]

# Beside this file, and read once.
PAGE = pathlib.Path(__file__).with_name("page.html").read_bytes()

MAX_CONNECTIONS = 512
IDLE_SECONDS = 75  # longer than proxies usually keep an idle connection, so that they close first
DRAIN_SECONDS = 1.5
BUSY_SECONDS = 2.0


def timestamp():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Log:
    """One JSON object per line on stdout; `quiet` leaves out the line of each request."""

    def __init__(self, instance, quiet):
        self.instance, self.quiet, self.lock = instance, quiet, threading.Lock()

    def write(self, level, message, **fields):
        line = json.dumps(
            {"timestamp": timestamp(), "level": level, "service": "product", "instance": self.instance,
             "message": message, **fields}, ensure_ascii=False)
        with self.lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def request(self, **fields):
        if not self.quiet:
            self.write("INFO", "request", **fields)


class Catalogue:
    """The SQLite file. One connection per thread; several processes may share the file."""

    def __init__(self, path):
        self.path, self.local, self.ready = path, threading.local(), False

    def connection(self):
        if not hasattr(self.local, "connection"):
            self.local.connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        return self.local.connection

    def prepare(self):
        """Creates the table and the seed rows; doing it again, or in two processes at once, changes nothing."""
        db = self.connection()
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("CREATE TABLE IF NOT EXISTS products (id TEXT PRIMARY KEY, name TEXT NOT NULL,"
                       " category TEXT NOT NULL, price_cents INTEGER NOT NULL CHECK (price_cents > 0))")
            db.executemany("INSERT OR IGNORE INTO products VALUES (?, ?, ?, ?)", CATALOGUE)
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        self.ready = True

    def healthy(self):
        if not self.ready:
            return False
        try:
            return self.connection().execute("SELECT 1 FROM products LIMIT 1").fetchone() is not None
        except sqlite3.Error:
            return False

    def all(self):
        rows = self.connection().execute("SELECT id, name, category, price_cents FROM products ORDER BY rowid")
        return [product(row) for row in rows]

    def one(self, id):
        row = self.connection().execute(
            "SELECT id, name, category, price_cents FROM products WHERE id = ?", (id,)).fetchone()
        return row and product(row)

    def recommended(self, item):
        """Ids of other products of the same category, cheapest first, at most three."""
        rows = self.connection().execute(
            "SELECT id FROM products WHERE category = ? AND id <> ? ORDER BY price_cents LIMIT 3",
            (item["category"], item["id"]))
        return [row[0] for row in rows]

    def close_thread(self):
        if hasattr(self.local, "connection"):
            self.local.connection.close()
            del self.local.connection


def product(row):
    return {"id": row[0], "name": row[1], "category": row[2], "price_cents": row[3], "currency": "EUR"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024  # head and body leave in one write

    def do_GET(self):
        started = time.monotonic()
        self.server.busy(self.connection)
        try:
            status, body = self.answer()
        except sqlite3.Error as error:
            status, body = 503, {"error": f"database: {error}"}
        self.reply(status, body)
        if self.path != "/healthz":
            self.server.log.request(
                method=self.command, path=self.path, status=status,
                ms=round((time.monotonic() - started) * 1000, 2), traceparent=self.headers.get("traceparent"))

    def answer(self):
        catalogue, path = self.server.catalogue, self.path.split("?", 1)[0]
        if path == "/":
            return 200, PAGE
        if path == "/healthz":
            ready = catalogue.healthy() and not self.server.draining
            return (200, {"ready": True}) if ready else (503, {"ready": False})
        if path == "/products":
            products = catalogue.all()
            body = {"products": products}
            if self.server.recommends:
                body["recommended"] = [item["id"] for item in sorted(products, key=lambda p: p["price_cents"])[:3]]
            return 200, body
        if match := re.fullmatch(r"/products/([A-Za-z0-9_-]{1,64})", path):
            item = catalogue.one(match[1])
            if item is None:
                return 404, {"error": f"no product {match[1]}"}
            if self.server.recommends:
                item["recommended"] = catalogue.recommended(item)
            return 200, item
        return 404, {"error": f"no such path: {path[:200]}"}

    def not_allowed(self):
        self.server.busy(self.connection)
        self.close_connection = True  # a body may follow, which is not read
        self.reply(405, {"error": f"method {self.command} not allowed"}, allow="GET")

    do_POST = do_PUT = do_PATCH = do_DELETE = not_allowed

    def reply(self, status, body, allow=None):
        server = self.server
        if isinstance(body, bytes):
            kind, data = "text/html; charset=utf-8", body
        else:
            kind = "application/json"
            data = json.dumps({**body, "version": server.version, "instance": server.instance}).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.send_header("x-instance", server.instance)
        self.send_header("x-version", server.version)
        if allow:
            self.send_header("allow", allow)
        # A body on a GET is legal and means nothing; it is not read, so the connection ends here.
        unread = "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        if server.draining or unread or self.close_connection:
            self.send_header("connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        server.idle(self.connection)

    def version_string(self):
        return "shop-product"

    def log_message(self, *_):
        pass  # one line per request is written in do_GET


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, bind, version, instance, catalogue, log):
        host, port = parse_bind(bind)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.version, self.instance, self.catalogue, self.log = version, instance, catalogue, log
        self.recommends = version != "v1"
        self.draining = False
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.lock, self.open = threading.Lock(), {}  # connection -> is a request being answered
        super().__init__((host, port), Handler)

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer.server_bind: it looks up the host's name in DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        while not self.slots.acquire(timeout=0.1):  # at the bound, new connections wait in the backlog
            if self.draining:
                return self.shutdown_request(request)
        with self.lock:
            self.open[request] = False
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.catalogue.close_thread()
            with self.lock:
                self.open.pop(request, None)
            self.slots.release()

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        level = "INFO" if isinstance(error, (ConnectionError, TimeoutError)) else "ERROR"
        self.log.write(level, "connection ended", error=repr(error))

    def busy(self, connection):
        with self.lock:
            self.open[connection] = True

    def idle(self, connection):
        with self.lock:
            self.open[connection] = False

    def drain(self):
        """Stops accepting, ends idle connections, lets requests finish until the deadline."""
        self.draining = True
        self.shutdown()
        self.socket.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            with self.lock:
                if not any(self.open.values()):
                    break
            time.sleep(0.01)
        with self.lock:
            for connection in self.open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the peer was faster


def parse_bind(text):
    """`0.0.0.0:8080` or `[::]:8080` -> (host, port)."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):(\d{1,5})", text)
    if not match or int(match[3]) > 65535:
        sys.exit(f"BIND: expected host:port or [host]:port, not {text!r}")
    return match[1] or match[2], int(match[3])


def prepare(catalogue, log):
    """Prepares the database in the background until it works; /healthz says no meanwhile."""
    while True:
        try:
            catalogue.prepare()
            catalogue.close_thread()
            log.write("INFO", "database ready", database=catalogue.path)
            return
        except sqlite3.Error as error:
            log.write("WARN", "database not ready", database=catalogue.path, error=str(error))
            catalogue.close_thread()
            time.sleep(0.2)


def main():
    version = os.environ.get("VERSION", "v1")
    if not re.fullmatch(r"v[0-9]{1,3}", version):
        sys.exit(f"VERSION: expected v1 or v2, not {version!r}")
    instance = os.environ.get("INSTANCE") or socket.gethostname()
    log = Log(instance, quiet=os.environ.get("LOG", "info") == "warn")
    catalogue = Catalogue(os.environ.get("DATABASE", "product.db"))
    server = Server(os.environ.get("BIND", "0.0.0.0:8080"), version, instance, catalogue, log)
    # Blocked in every thread and awaited below: a handler would run between any two lines, with locks held.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=prepare, args=(catalogue, log), daemon=True).start()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    host, port = server.server_address[:2]
    log.write("INFO", "listening", address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}", version=version)
    signal.sigwait(signals)
    log.write("INFO", "stopping")
    server.drain()
    log.write("INFO", "stopped")
    os._exit(0)  # connections' threads may still be at work in the interpreter; every commit is on disk already


if __name__ == "__main__":
    main()
