"""A small OpenAI-compatible server over a toy LM, in a thread: what it gives can be taken away, and it can fail."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from truing.models import family
from truing.models.lm import LM
from truing.text import encode
from truing.types import Dialogue

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALL = frozenset({"echo", "prompt_logprobs", "logprobs", "top", "n", "stop"})
APART = ALL | {"ids"}  # takes token ids for a prompt and tells a prompt's


QUICK = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]


def lines(path: str, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines; the path again."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts_of(asked: list[dict[str, Any]]) -> set[str]:
    """The prompts of requests."""
    return {body["messages"][0]["content"] if "messages" in body else body["prompt"] for body in asked}


def toy(template: str | None = CHAT, merged: str = "") -> LM:
    """A toy over bytes; ``merged`` are two letters that its tokenizer makes one token of."""
    tokenizer = family.byte_tokenizer()
    if merged:
        tokens = json.loads(tokenizer.backend_tokenizer.to_str())
        tokens["model"]["vocab"][merged] = 259
        tokens["model"]["merges"] = [list(merged)]
        tokenizer = type(tokenizer)(
            tokenizer_object=Tokenizer.from_str(json.dumps(tokens)),
            **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")},
        )
    tokenizer.chat_template = template
    size = {"vocab_size": 260} if merged else {}
    model = family.new_model("llama", layers=2, width=32, heads=2, max_positions=1024, seed=3, **size)
    return LM(model, tokenizer, name="toy")


class Server:
    """``gives`` names what it answers (the rest is dropped in silence), ``faults`` what befalls the next requests.

    A fault is drop, truncate, hang, trickle (a byte at a time), a status, or (status, headers, body). ``always``
    befalls every request once ``alive`` requests were answered.
    """

    def __init__(self, lm: LM, gives: frozenset[str] = ALL) -> None:
        self.lm, self.gives = lm, gives
        self.faults: list[Any] = []
        self.always: Any = None
        self.alive = 0
        self.asked: list[dict[str, Any]] = []  # bodies that were answered well
        self.headers: list[dict[str, str]] = []
        self.requests = self.together = self.most_together = 0
        self.lock, self.counting, self.free = threading.Lock(), threading.Lock(), threading.Event()
        self.url = ""
        self.models: dict[str, Any] = {"data": []}  # what GET /models answers
        self.more: dict[str, Any] = {}  # in every answer
        self.finish = ""  # how every reply is said to end

    @property
    def name(self) -> str:
        return f"{self.url}#toy"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        talk = path.endswith("/chat/completions")
        if talk:
            ids = self._chat_ids(body)
            prompt: Any = Dialogue.from_messages(body["messages"])
        else:
            prompt = body["prompt"]
            if isinstance(prompt, list):
                assert "ids" in self.gives
                ids, prompt = prompt, self.lm.tokenizer.decode(prompt, skip_special_tokens=True)
            else:
                ids = self.lm.encode_prompt(prompt)
        if body.get("continue_final_message"):
            drawn = [([], [], "", "length")]
        else:
            n = body.get("n", 1) if "n" in self.gives else 1
            found = self.lm.sample(
                [prompt],
                n,
                max_tokens=body["max_tokens"],
                temperature=body["temperature"],
                top_p=body.get("top_p", 1.0),
                stop=body.get("stop", []) if "stop" in self.gives else ["\0"],
                seed=[[body.get("seed", 0) + i for i in range(n)]],
            )[0]
            drawn = [(s.token_ids, s.logprobs, s.text, s.finish) for s in found]
        choices = [self._choice(talk, body, ids, *d) | {"index": i} for i, d in enumerate(drawn)]
        out: dict[str, Any] = {"choices": choices, "usage": {"prompt_tokens": len(ids)}, **self.more}
        if body.get("return_token_ids") and "ids" in self.gives:
            special = body.get("add_special_tokens", True)
            choices[0]["prompt_token_ids"] = ids if special else ids[1:]  # the toy puts a BOS before
        if "prompt_logprobs" in body and "prompt_logprobs" in self.gives:
            values = self.lm.engine.score([ids], [1])[0]
            rows = [None] + [
                {str(t): {"logprob": float(v), "rank": 1, "decoded_token": self._text(t)}}
                for t, v in zip(ids[1:], values, strict=True)
            ]
            (out if talk else choices[0])["prompt_logprobs"] = rows
        return out

    def _chat_ids(self, body: dict[str, Any]) -> list[int]:
        dialogue = Dialogue.from_messages(body["messages"])
        return encode(dialogue, self.lm.tokenizer, self.lm.format)

    def _text(self, token: int) -> str:
        return self.lm.tokenizer.decode([token])

    def _choice(
        self, talk: bool, body: dict[str, Any], ids: list[int], drawn: Any, values: Any, text: str, finish: str
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"finish_reason": self.finish or finish}
        choice |= {"message": {"role": "assistant", "content": text}} if talk else {"text": text}
        asked = body.get("logprobs")
        if not asked or "logprobs" not in self.gives:
            return choice
        top: list[tuple[str, float]] = []
        many = body.get("top_logprobs", 0) if talk else int(asked)
        if many and "top" in self.gives:
            all_values = self.lm.engine.next_logprobs([ids])[0]
            top = [(self._text(int(t)), float(all_values[t])) for t in np.argsort(-all_values)[:many]]
        tokens, scores = [self._text(t) for t in drawn], [float(v) for v in values]
        if talk:
            rows: list[dict[str, Any]] = [
                {"token": t, "logprob": v, "bytes": [i] if i < 256 else None}
                for t, v, i in zip(tokens, scores, drawn, strict=True)
            ]
            if rows:
                rows[0]["top_logprobs"] = [{"token": t, "logprob": v} for t, v in top]
            return choice | {"logprobs": {"content": rows}}
        tops: list[Any] = [dict(reversed(top))] if top else []  # a dict keeps the last of equal texts: the likeliest
        if body.get("echo") and "echo" in self.gives:
            before = self.lm.engine.score([ids], [1])[0] if len(ids) > 1 else []
            tokens, scores = [self._text(t) for t in ids] + tokens, [None, *map(float, before), *scores]  # type: ignore
            choice["text"] = self.lm.tokenizer.decode(ids, skip_special_tokens=True) + text
        return choice | {"logprobs": {"tokens": tokens, "token_logprobs": scores, "top_logprobs": tops}}


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200 if self.path == "/v1/models" else 404, {}, server.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.counting:
                server.requests += 1
                server.together += 1
                server.most_together = max(server.most_together, server.together)
                server.headers.append(dict(self.headers))
                dead = server.always is not None and len(server.asked) >= server.alive
                fault = server.always if dead else server.faults.pop(0) if server.faults else None
                if fault is None:
                    server.asked.append(body)
            try:
                self._reply(fault, body)
            finally:
                with server.counting:
                    server.together -= 1

        def _reply(self, fault: Any, body: dict[str, Any]) -> None:
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if fault == "hang":
                server.free.wait(20)
                self.close_connection = True
                return
            status, headers, content = 200, {}, None
            if isinstance(fault, int):
                status, content = fault, {"error": {"message": f"it says {fault}"}}
            elif isinstance(fault, tuple):
                status, headers, content = fault
            if content is None:
                with server.lock:  # the engine is for one thread
                    content = server.answer(self.path, body)
            self._send(status, headers, content, fault)

        def _send(self, status: int, headers: dict[str, str], content: Any, fault: Any = None) -> None:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            data = data[: len(data) // 2] if fault == "truncate" else data
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for i in range(len(data)) if fault == "trickle" else ():
                    self.wfile.write(data[i : i + 1])
                    server.free.wait(0.05)
                if fault != "trickle":
                    self.wfile.write(data)

    return Handler


@contextlib.contextmanager
def serving(lm: LM, gives: frozenset[str] = ALL) -> Iterator[Server]:
    server = Server(lm, gives)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(server)) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.free.set()  # whoever hangs
            http.shutdown()
