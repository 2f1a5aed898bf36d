"""A real HTTP server on loopback that gives recorded answers."""

import contextlib
import http.server
import json
import threading
from urllib.parse import urlsplit


@contextlib.contextmanager
def answering(answers: dict[str, object]):
    """An HTTP server with recorded answers by path; gives its address and the list of what was asked."""
    asked = []

    class Recorded(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = answers.get(urlsplit(self.path).path)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorded)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
