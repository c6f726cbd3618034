"""``truing serve`` as a process, by itself and behind a real nginx; and what it refuses before it starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from truing.collect import serve as serving
from truing.collect import tables as t
from truing.collect.store import Store
from truing.configs import Serve
from truing.options import Usage

DOCS = Path(__file__).parents[2] / "docs" / "serve.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@pytest.fixture
def lines(tmp_path: Path) -> str:
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"reply": f"Reply {n}."}) + "\n" for n in range(9)))
    return f"script:{tmp_path / 'lines.jsonl'}"


class Process:
    """``truing serve`` on a free port; ``said`` is what it has printed so far."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / f"serve-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "truing", "serve", "--port", "0", *options]
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=os.environ | {"LANG": "C"})
        deadline = time.monotonic() + 90
        while "ctrl-C stops" not in self.said:
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.05)
        self.port = int(re.search(r"Open http\S*?:(\d+)/", self.said + "Open http://x:0/")[1])

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def token(self) -> str:
        deadline = time.monotonic() + 20
        while not (found := re.search(r"/setup/([\w-]+)", self.said)):
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)
        return found[1]

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    running: list[Process] = []

    def begin(*options: str) -> Process:
        running.append(Process(tmp_path, *options))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def set_up(browser: httpx2.Client, token: str) -> httpx2.Response:
    page = browser.get(f"/setup/{token}")
    form = re.search(r'name="form" value="([\w-]+)"', page.text)[1]
    fields = {"form": form, "name": "Ada", "password": "correct horse battery", "again": "correct horse battery"}
    return browser.post(f"/setup/{token}", data=fields)


def test_the_first_run_makes_an_administrator_and_the_next_one_goes_on(start: Any, tmp_path: Path, lines: str):
    first = start("--arm", f"one={lines},modes=helpful")
    assert "Arms: one (helpful)" in first.said and "truing.db" in first.said
    with httpx2.Client(base_url=f"http://127.0.0.1:{first.port}", timeout=30) as browser:
        assert browser.get("/health").json() == {"status": "ok"}
        answer = set_up(browser, first.token)
        assert answer.status_code == 303 and "Secure" not in answer.headers["set-cookie"]
        assert "Welcome, Ada" in browser.get("/").text
    said = first.said
    assert re.search(r"POST /setup/\{token\} 303 \d+ ms", said) and said.count(first.token) == 1
    assert first.stop() == 0 and first.said.endswith("Stopped.\n")
    second = start()  # arms are in the store
    assert "/setup/" not in second.said and "Arms: one (helpful)" in second.said
    assert httpx2.get(f"http://127.0.0.1:{second.port}/login").status_code == 200
    assert second.stop(signal.SIGTERM) in (0, -signal.SIGTERM)


def test_it_stops_by_itself_after_its_time(start: Any, lines: str):
    process = start("--arm", f"one={lines}", "--max-time", "0.01")
    assert process.process.wait(30) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "0.0.0.0"}, "--behind-proxy"),
        ({"host": "::"}, "--allow-plain-http"),
        ({"host": "192.0.2.7"}, "other machines"),
        ({"host": "somewhere.example.org"}, "other machines"),
        ({"port": 70000}, "--port is 70000"),
        ({"url": "feedback.example.org"}, "--url"),
        ({"out": Path("x")}, "--out has no meaning"),
        ({"arm": ["no model"]}, "is no arm"),
        ({"arm": ["a=x,temperature=hot"]}, "temperature"),
        ({"arm": ["a=x", "a=y"]}, "given twice"),
        ({"arms": Path("none.yaml")}, "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_starts(options: dict[str, Any], said: str):
    with pytest.raises(Usage, match=re.escape(said)):
        serving.serve(Serve(**{"dry_run": True, "db": "nowhere/x.db"} | options))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.0.9"])
def test_loopback_needs_no_word(host: str):
    serving.check(Serve(host=host))


def test_other_addresses_are_served_when_asked_for():
    serving.check(Serve(host="0.0.0.0", behind_proxy=True))
    serving.check(Serve(host="0.0.0.0", allow_plain_http=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1", "expected a list"),
        ("- [", "is not YAML"),
        ("- one", "expected mappings"),
        ("- model: x", "needs a name"),
    ],
)
def test_a_wrong_file_of_arms_is_named(tmp_path: Path, text: str, said: str):
    path = tmp_path / "arms.yaml"
    path.write_text(text)
    with pytest.raises(Usage, match=said) as told:
        serving.read_offers(Serve(arms=path))
    assert "arms.yaml" in str(told.value)


def test_arms_of_the_docs_can_be_read(tmp_path: Path):
    path = tmp_path / "arms.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.S)[1])
    offers = serving.read_offers(Serve(arms=path, arm=["base=smollm2,weight=3"]))
    assert [(o.name, o.spec.best_of, dict(o.weights)) for o in offers] == [
        ("base", 1, {"helpful": 3, "redteam": 3, "rank": 3}),
        ("plain", 1, {"helpful": 2, "redteam": 2, "rank": 2}),
        ("rejection-sampling", 16, {"redteam": 1}),
    ]


def test_a_store_or_port_that_cannot_be_had_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no folder"):
        serving.open_store(str(tmp_path / "none" / "x.db"))
    (tmp_path / "text.db").write_text("this is no database, only text" * 100)
    with pytest.raises(ValueError, match="not a database"):
        serving.open_store(str(tmp_path / "text.db"))
    with pytest.raises(ValueError, match=r"postgresql\S*://truing:\*\*\*@.*cannot be used") as told:
        serving.open_store("postgresql://truing:secret@127.0.0.1:1/none")
    assert "secret" not in str(told.value)
    with serving.listen("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="already in use.*--port"):
        serving.listen("127.0.0.1", taken.getsockname()[1])


# ---------------------------------------------------------------- behind nginx


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Any]:
    """nginx with the configuration of docs/serve.md, but for ports and paths."""
    if not NGINX or not shutil.which("openssl"):
        pytest.skip("nginx is not installed: apt-get install --no-install-recommends nginx-light openssl")
    running: list[subprocess.Popen[bytes]] = []

    def begin(*ports: int) -> tuple[int, ssl.SSLContext]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        crt, key = tmp_path / "feedback.crt", tmp_path / "feedback.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             "2", "-subj", "/CN=feedback.example.org", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key,
             "-out", crt],
            check=True, capture_output=True,
        )  # fmt: skip
        site = re.search(r"```nginx\n(.*?)```", DOCS.read_text(), re.S)[1]
        for written, real in {
            "127.0.0.1:8000": f"127.0.0.1:{ports[0]}",
            "127.0.0.1:8001": f"127.0.0.1:{ports[1]}",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/ssl/feedback.crt": str(crt),
            "/etc/ssl/feedback.key": str(key),
        }.items():
            assert written in site
            site = site.replace(written, real)
        places = "".join(
            f"{kind}_temp_path {tmp_path}/nginx-{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = tmp_path / "nginx.conf"
        conf.write_text(
            f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/nginx.log;\n"
            f"{'user root;' if os.geteuid() == 0 else ''}\n"
            f"events {{ worker_connections 256; }}\nhttp {{\n{places}{site}\n}}\n"
        )
        running.append(subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-c", str(conf)], stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert running[-1].poll() is None and time.monotonic() < deadline, (tmp_path / "nginx.log").read_text()
            time.sleep(0.05)
        return port, ssl.create_default_context(cafile=str(crt))

    yield begin
    for one in running:
        one.terminate()
        one.wait(20)


def test_behind_nginx_with_tls_and_two_processes(start: Any, nginx: Any, tmp_path: Path, lines: str):
    options = ("--arm", f"one={lines}", "--behind-proxy", "--url", "https://feedback.example.org")
    first, second = start(*options, "--port", str(_free())), start(*options, "--port", str(_free()))
    assert "https://feedback.example.org/setup/" in second.said
    ports = [int(p.process.args[p.process.args.index("--port", 5) + 1]) for p in (first, second)]  # type: ignore[union-attr]
    port, context = nginx(*ports)
    spoof = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    with httpx2.Client(base_url=f"https://127.0.0.1:{port}", verify=context, headers=spoof, timeout=30) as browser:
        answer = set_up(browser, first.token)
        assert answer.status_code == 303
        assert all("Secure" in c for c in answer.headers.get_list("set-cookie") if "Max-Age=0" not in c)
        for _ in range(6):  # by turns from one process and the other: a session is the database's
            assert "Welcome, Ada" in browser.get("/").text
        assert "strict-transport-security" in browser.get("/login").headers
        assert browser.post("/login", content=b"x" * (2 << 20)).status_code == 413
        form = re.search(r'name="form" value="([\w-]+)"', browser.get("/login").text)[1]
        assert browser.post("/login", data={"form": form, "name": "Ada", "password": "wrong"}).status_code == 401
        first.stop(signal.SIGKILL)  # the other goes on
        for _ in range(4):
            assert "Welcome, Ada" in browser.get("/").text
    store = Store(str(tmp_path / "truing.db"))
    with store.read() as db:
        noted = db.execute(sa.select(t.audit).where(t.audit.c.action == "sign-in failed")).one()
    store.close()
    assert noted.details == {"address": "127.0.0.1"}  # the real one, not the one that was made up


def _free() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
