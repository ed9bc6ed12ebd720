"""The judge: an endpoint that answers, errs, babbles, dawdles or is down, on a server in this process."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from kvledger import cli
from kvledger.records import Log, Record
from kvledger.run import judge, rubrics
from kvledger.run.judge import Down, Endpoint
from kvledger.run.rubrics import Asked

ANSWER = Asked(("c", 0, 0), "helmet/longqa_alike", "answer", "Where?", ("Rome",), "in Rome")
SUMMARY = Asked(("c", 0, 1), "helmet/summ_alike", "summary", "", ("One came. Two left.\nThree stayed.",), "One came.")
GOOD = '{"fluency": 1, "correctness": 3}'


@dataclass
class Server:
    """Answers each prompt by `reply`: a text, or (status, body) as they are. `calls` are the requests it has seen."""

    reply: Callable
    calls: list = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(reply):
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.calls.append((body["messages"][0]["content"], dict(self.headers), body))
            said = server.reply(server.calls[-1][0])
            status, out = said if isinstance(said, tuple) else (200, completion(said))
            try:
                self.send_response(status)
                self.end_headers()
                for piece in out if isinstance(out, list) else [out]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(0.05 * isinstance(out, list))
            except OSError:
                pass  # the client has had enough

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def grade(prompt):
    """A judge that finds everything right but one point of three, and one sentence of four."""
    if "<key_points>" in prompt:
        return 'Point 2 is missing. {"recall": 2}'
    if "<expert_summary>" in prompt:
        return '{"precision": 3, "sentence_count": 4}'
    return GOOD if "<correct_answers>" in prompt else '{"fluency": 1}'


def record(sample, turn, task, prediction="in Rome", gold="Rome"):
    plain = {"str": "", "int": 0, "float": 0.0}
    facts = {f.name: plain.get(str(f.type).split(" ")[0], ()) for f in fields(Record)}
    facts |= dict(cell="c", recipe="full", task=task, sample=sample, turn=turn, prediction=prediction, gold=gold)
    return Record(**facts)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run with two answers and a summary to judge, and one turn that needs no judge."""
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    log = Log(tmp_path)
    log.append(record(0, 0, "helmet/longqa_alike"))
    log.append(record(0, 1, "helmet/longqa_alike", prediction="\x1b control \x00 " + "long " * 200_000))
    log.append(record(1, 0, "helmet/summ_alike", gold=SUMMARY.golds[0]))
    log.append(record(2, 0, "scbench/kv"))
    log.close()
    return tmp_path


def command(folder, *more):
    return cli.main(["judge", str(folder), "--judge-model", "org/judge:1", *more])


def lines(folder):
    return (folder / "judgements" / "org-judge-1.jsonl").read_text().splitlines()


def test_all_that_waits_is_judged_once(folder, capsys):
    before = (folder / "records" / "turns.jsonl").read_bytes()
    with serve(grade) as server:
        assert command(folder, "--endpoint", server.url) == 0
        assert len(server.calls) == 5
        assert max(len(prompt) for prompt, _, _ in server.calls) < 50_000
        assert server.calls[0][2]["model"] == "org/judge:1"
        assert command(folder, "--endpoint", server.url + "/chat/completions") == 0
        assert len(server.calls) == 5  # nothing is asked twice
    said = capsys.readouterr().out
    assert "helmet/longqa_alike  full  org/judge:1: 1.000 over 2 answers" in said
    assert "helmet/summ_alike  full  org/judge:1: 0.706 over 1 answers" in said  # 2 · 2/3 · 3/4 / (2/3 + 3/4)
    assert "3 of 3 answers judged" in said
    assert len(lines(folder)) == 5
    assert (folder / "records" / "turns.jsonl").read_bytes() == before


def test_a_judge_that_is_down_leaves_scores_pending_and_the_command_goes_on_later(folder, capsys):
    with serve(grade) as server:
        url = server.url
    assert command(folder, "--endpoint", url, "--timeout", "1") == 1
    said = capsys.readouterr()
    assert "0 of 3 answers judged by org/judge:1; 3 pending" in said.out
    assert "does not answer" in said.err
    with serve(lambda prompt: (503, b"") if "<expert_summary>" in prompt else grade(prompt)) as server:
        assert command(folder, "--endpoint", server.url) == 1
        assert "2 of 3 answers judged" in capsys.readouterr().out
        assert len(lines(folder)) == 4  # what was said of the summary is kept
        server.reply = grade
        server.calls.clear()
        assert command(folder, "--endpoint", server.url) == 0
        assert len(server.calls) == 1


def test_without_an_endpoint_what_waits_is_told(folder, capsys):
    assert command(folder) == 1
    said = capsys.readouterr()
    assert "0 of 3 answers judged" in said.out
    assert "--endpoint" in said.err


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_ends_the_command_with_its_reason(folder, capsys, status):
    with serve(lambda prompt: (status, b"no")) as server:
        assert command(folder, "--endpoint", server.url) == 2
        assert len(server.calls) == 1
    assert str(status) in capsys.readouterr().err


def test_mistakes_are_told(folder, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    assert command(empty) == 2
    assert command(folder, "--endpoint", "file:///etc/passwd") == 2
    assert command(folder, "--endpoint", "http://x", "--timeout", "0") == 2
    (folder / "records" / "turns.jsonl").write_text(record(0, 0, "scbench/kv").line() + "\n")
    assert command(folder) == 2
    said = capsys.readouterr().err
    for word in ("no records in", "begins with http", "more than 0 seconds", "no record in"):
        assert word in said


def test_the_key_is_sent_only_where_there_is_one(monkeypatch, folder):
    with serve(grade) as server:
        monkeypatch.setenv("JUDGE_KEY", "secret")
        assert command(folder, "--endpoint", server.url, "--key-env", "JUDGE_KEY") == 0
        assert {headers["Authorization"] for _, headers, _ in server.calls} == {"Bearer secret"}
        Endpoint(server.url, "m").ask("<correct_answers>")
        assert "Authorization" not in server.calls[-1][1]
    assert not any("secret" in line for line in lines(folder))


# ---- replies that are none -------------------------------------------------------------------------------------------

BAD = {
    "no JSON": (200, b"<html>busy</html>"),
    "no completion": (200, b'{"error": "x"}'),
    "a list": (200, b"[]"),
    "no text": (200, b'{"choices": [{"message": {"content": null}}]}'),
    "deep": (200, b"[" * 200_000),
    "not UTF-8": (200, b"\xff\xfe"),
    "empty": (200, b""),
    "10 MB": (200, b" " * 10_000_000),
    "busy": (429, b""),
    "broken": (500, b""),
    "slow": (200, [b" "] * 100),
    "no score": "very good indeed",
    "half a score": '{"fluency": 1}',
    "too much": '{"fluency": 1, "correctness": 3, "style": 2}',
    "out of range": '{"fluency": 1, "correctness": 4}',
    "a fraction": '{"fluency": 1, "correctness": 2.5}',
    "a bool": '{"fluency": true, "correctness": 3}',
    "words": '{"fluency": "one", "correctness": "three"}',
    "huge": '{"fluency": 1, "correctness": ' + "3" * 10_000 + "}",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_no_score_and_is_tried_again_a_few_times(tmp_path, name):
    warned = []
    path = judge.path_of(tmp_path, "m")
    with serve(lambda prompt: BAD[name]) as server:
        endpoint = Endpoint(server.url, "m", seconds=0.3)
        assert judge.ask_all(endpoint, [ANSWER], path, warned.append, pause=0, tries=2) == 0
        assert len(server.calls) == 2
        assert "not judged" in warned[0]
        assert judge.scores([ANSWER], judge.judgements(path)) == {}
        server.reply = lambda prompt: GOOD
        assert judge.ask_all(endpoint, [ANSWER], path, warned.append, pause=0) == 1
    assert judge.scores([ANSWER], judge.judgements(path)) == {ANSWER.key: 1.0}


def test_one_failure_among_tries_does_no_harm(tmp_path):
    replies = iter([(500, b""), "no", GOOD])
    with serve(lambda prompt: next(replies)) as server:
        assert judge.ask_all(Endpoint(server.url, "m"), [ANSWER], judge.path_of(tmp_path, "m"), print, pause=0) == 1


@dataclass
class Fake:
    """A judge without a network: the interface is `name` and `ask`."""

    name: str = "fake"
    asked: int = 0

    def ask(self, prompt):
        self.asked += 1
        raise Down("asleep")


def test_waits_double_and_a_dead_judge_is_left_alone(tmp_path, monkeypatch):
    waits, warned, fake = [], [], Fake()
    monkeypatch.setattr(judge.time, "sleep", waits.append)
    many = [Asked(("c", i, 0), "t", "answer", "", ("g",), "p") for i in range(50)]
    judge.ask_all(fake, many, judge.path_of(tmp_path, "fake"), warned.append)
    assert fake.asked == judge.GIVE_UP * judge.TRIES
    assert waits[: judge.TRIES - 1] == [1, 2, 4]
    assert "taken to be down" in warned[-1]


def test_damaged_judgements_are_passed_over_and_a_torn_line_harms_no_other(tmp_path):
    path, warned = judge.path_of(tmp_path, "m"), []
    path.parent.mkdir()
    path.write_text('{"cell": "c"}\n[]\n\n{"cell": "c", "sam')
    with serve(grade) as server:
        judge.ask_all(Endpoint(server.url, "m"), [ANSWER, SUMMARY], path, warned.append, pause=0)
    assert len(warned) == 3
    assert set(judge.scores([ANSWER, SUMMARY], judge.judgements(path))) == {ANSWER.key, SUMMARY.key}


# ---- rubrics ---------------------------------------------------------------------------------------------------------


def test_what_waits_is_taken_from_records_with_or_without_their_question():
    old = record(0, 0, "helmet/longqa_alike")
    new = SimpleNamespace(
        **{f.name: getattr(old, f.name) for f in fields(Record)} | dict(question="Where?", golds=("a", "b"))
    )
    kinds = {"helmet/longqa_alike": "answer"}
    (first, second) = judge.waiting([old, new, record(0, 0, "scbench/kv")], kinds)
    assert first.golds == ("Rome",)
    assert (second.question, second.golds) == ("Where?", ("a", "b"))


def test_scores_of_parts():
    points = len(rubrics.points(SUMMARY))
    assert points == 3
    full = {"fluency": {"fluency": 1}, "recall": {"recall": 3}, "precision": {"precision": 2, "sentence_count": 2}}
    assert rubrics.score(SUMMARY, full) == 1.0
    assert rubrics.score(SUMMARY, full | {"fluency": {"fluency": 0}}) == 0.0
    assert rubrics.score(SUMMARY, full | {"recall": {"recall": 0}}) == pytest.approx(0.0)
    assert rubrics.score(SUMMARY, {k: full[k] for k in ("fluency", "recall")}) is None
    assert rubrics.score(ANSWER, {"answer": {"fluency": 1, "correctness": 2}}) == pytest.approx(2 / 3)


def test_the_last_object_of_a_reply_counts_and_an_answer_cannot_speak_for_the_judge():
    limits = rubrics.PARTS["answer"][0].limits(ANSWER)
    assert rubrics.parse('The answer says {"fluency": 1}. ' + GOOD, limits)["correctness"] == 3
    with pytest.raises(ValueError, match="supports 3 of 2"):
        rubrics.parse('{"precision": 3, "sentence_count": 2}', rubrics.PARTS["summary"][2].limits(SUMMARY))


def test_braces_in_texts_do_not_upset_the_prompt():
    odd = Asked(("c", 0, 0), "t", "answer", "{question} {0}", ("{}",), "{prediction} }{")
    assert "{prediction} }{" in rubrics.PARTS["answer"][0].prompt(odd)
