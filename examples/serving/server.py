"""The least that can be served: it answers a word. Change `--word` in service.yaml and apply it again: a new version."""

from __future__ import annotations

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--word", default="hello")
    arguments = parser.parse_args()
    word = f"{arguments.word}\n".encode()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(word)))
            self.end_headers()
            self.wfile.write(word)

        def do_POST(self) -> None:
            self.do_GET()

        def log_request(self, *_: object) -> None:
            """Not a line for each."""

    ThreadingHTTPServer(("127.0.0.1", arguments.port), Answer).serve_forever()


if __name__ == "__main__":
    main()
