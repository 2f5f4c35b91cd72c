"""A client that speaks mesh TLS by itself, with whatever certificate it is given: for certificates no proxy would use.

tls_client.py HOST PORT ALPN CERTIFICATE KEY TEXT     sends TEXT, prints the answer; exit 1 and the reason when refused
"""

import socket
import ssl
import sys

host, port, alpn, certificate, key, text = sys.argv[1:]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
tls.check_hostname = False
tls.verify_mode = ssl.CERT_NONE
tls.set_alpn_protocols([alpn])
if certificate != "none":
    tls.load_cert_chain(certificate, key)
try:
    with socket.create_connection((host, int(port)), timeout=10) as plain, tls.wrap_socket(plain) as stream:
        stream.sendall(text.encode())
        answer = stream.recv(65536)
except OSError as error:
    sys.exit(f"refused: {error}")
if not answer:
    sys.exit("refused: closed")
print(answer.decode(), end="")
