"""RemoteCalls, and function graders with its settings, against a real HTTP server."""

import asyncio
import http.server
import json
import random
import threading
import urllib.error
import urllib.request

import pytest

from descant import BaseGrader, Grade, StringThread
from descant.errors import ConfigurationError, GradingError, IgnoreGradeException
from descant.graders.base import grade_many
from descant.graders.remote_calls import MAX_BACKOFF_S, RemoteCalls

THREAD = StringThread().user("q").assistant("a")
HANGING = StringThread().user("q").assistant("hang")
QUICK = {"timeout_s": 600, "backoff_s": 0}


class JudgeServer(http.server.ThreadingHTTPServer):
    """Does what ``plan`` says, request by request: a status, "hang" or "drop"; at its end it answers.

    Threads that end in "hang" always hang.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), JudgeHandler)
        self.plan = []
        self.num_requests = 0
        self.num_running = self.most_running = 0
        self.lock = threading.Lock()
        self.release = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/judge"

    def handle_error(self, request, client_address):
        pass  # clients that went away


class JudgeHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.num_requests += 1
            server.num_running += 1
            server.most_running = max(server.most_running, server.num_running)
            step = server.plan.pop(0) if server.plan else "hang" if body["text"] == "hang" else 200
        try:
            if step == "hang":
                server.release.wait()
            if step == "drop":
                self.connection.close()
            if not isinstance(step, int):
                return
            answer = json.dumps({"score": len(body["text"]), "why": "it is short"}).encode()
        finally:
            with server.lock:
                server.num_running -= 1
        self.send_response(step)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = JudgeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def ask(url):
    """What a user would write: a function that is not async, of a thread."""

    def judge(thread):
        request = urllib.request.Request(url, json.dumps({"text": thread.last_content()}).encode())
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        return Grade(answer["score"], "judge", answer["why"])

    return judge


def judge_of(server, **settings):
    """The same with pauses of no length, which from_function does not offer."""
    grader = BaseGrader.from_function("judge", ask(server.url), **settings)
    grader._calls.backoff_s = 0
    return grader


async def test_a_judge_that_is_down_for_a_moment_is_asked_again(server):
    server.plan = [500, 500]
    grader = judge_of(server, max_attempts=3)
    assert await grader.grade(THREAD) == Grade(1.0, "judge", "it is short")
    assert server.num_requests == 3
    assert grader.get_logs()["score/count"] == 1


async def test_a_judge_that_stays_down_is_a_failure_with_its_own_exception(server):
    server.plan = [500] * 9
    (error,) = await grade_many(judge_of(server, max_attempts=3), [THREAD])
    assert isinstance(error, urllib.error.HTTPError)
    assert error.code == 500
    assert error.__notes__ == ["given up after 3 of 3 attempts"]
    assert server.num_requests == 3


async def test_a_dropped_connection_is_tried_again(server):
    server.plan = ["drop", "drop"]
    assert (await judge_of(server, max_attempts=3).grade(THREAD)).value == 1.0
    assert server.num_requests == 3


async def test_a_server_that_does_not_exist_is_a_failure(server):
    server.server_close()
    with pytest.raises(urllib.error.URLError) as error:
        await judge_of(server, max_attempts=2).grade(THREAD)
    assert error.value.__notes__ == ["given up after 2 of 2 attempts"]


async def test_a_judge_that_hangs_is_a_timeout_and_the_next_attempt_may_do(server):
    server.plan = ["hang"]
    grader = judge_of(server, timeout_s=0.5, max_attempts=20)
    assert (await grader.grade(THREAD)).value == 1.0
    with pytest.raises(TimeoutError, match=r"no answer within 0.5 s \(timeout_s\)"):
        await judge_of(server, timeout_s=0.5).grade(HANGING)


async def test_calls_that_hang_for_ever_do_not_block_later_ones(server):
    grader = judge_of(server, timeout_s=0.3)
    grades = await grade_many(grader, [HANGING] * 40)  # more than a grader calls at the same time
    assert {type(grade) for grade in grades} == {TimeoutError}
    grader = judge_of(server)
    grading = asyncio.ensure_future(grade_many(grader, [HANGING] * 40))
    async with asyncio.timeout(60):
        while server.num_running < 40 + 32:
            await asyncio.sleep(0)
    grading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await grading
    assert (await grader.grade(THREAD)).value == 1.0  # while all of them hang


async def test_the_limit_holds_at_the_server(server):
    grades = await grade_many(judge_of(server, max_concurrent=2), [THREAD] * 10)
    assert [grade.value for grade in grades] == [1.0] * 10
    assert server.num_requests == 10
    assert server.most_running <= 2


async def test_a_class_uses_remote_calls_directly(server):
    class Judge(BaseGrader):
        def __init__(self):
            super().__init__("judge")
            self.calls = RemoteCalls(max_attempts=2, **QUICK)

        async def grade(self, sample):
            grade = await self.calls.run(lambda: asyncio.to_thread(ask(server.url), sample))
            self.add_log({"score": grade.value})
            return grade

    server.plan = [503]
    assert (await Judge().grade(THREAD)).reasoning == "it is short"


def scripted(*outcomes):
    """A call that raises or returns one outcome after another."""
    remaining = iter(outcomes)

    async def call():
        outcome = next(remaining)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return call


@pytest.mark.parametrize(
    "error",
    [
        IgnoreGradeException("no"), GradingError("no"), ConfigurationError("no"), TypeError("no"), NameError("no"),
        AttributeError("no"), AssertionError("no"), NotImplementedError("no"), ZeroDivisionError("no"),
        ImportError("no"), RecursionError("no"),
    ],
)  # fmt: skip
async def test_what_another_attempt_does_not_cure_is_not_tried_again(error):
    with pytest.raises(type(error)) as raised:
        await RemoteCalls(**QUICK).run(scripted(error, "never"))
    assert raised.value is error
    assert error.__notes__ == [f"given up after 1 of 3 attempts; a {type(error).__name__} is not retried"]


@pytest.mark.parametrize(
    "error", [OSError("x"), ValueError("x"), KeyError("x"), TimeoutError("own"), RuntimeError("x")]
)
async def test_everything_else_is_tried_again(error):
    assert await RemoteCalls(**QUICK).run(scripted(error, error, "well")) == "well"
    with pytest.raises(type(error)) as raised:
        await RemoteCalls(**QUICK).run(scripted(error, error, error, "never"))
    assert raised.value is error  # a TimeoutError of the call's own is not rewritten


async def test_one_attempt_is_no_retry_and_adds_no_note():
    error = OSError("x")
    with pytest.raises(OSError, match="x"):
        await RemoteCalls(max_attempts=1).run(scripted(error))
    assert not hasattr(error, "__notes__")


async def test_the_wait_for_a_place_does_not_count():
    calls = RemoteCalls(timeout_s=0.2, max_attempts=1, max_concurrent=1)

    async def hang():
        await asyncio.Event().wait()

    async def answer():
        return "well"

    # the last one waits for 0.6 s
    *hung, last = await asyncio.gather(
        *(calls.run(call) for call in [hang, hang, hang, answer]), return_exceptions=True
    )
    assert [type(error) for error in hung] == [TimeoutError] * 3
    assert last == "well"


async def test_a_pause_holds_no_place():
    calls = RemoteCalls(timeout_s=None, max_attempts=2, max_concurrent=1, backoff_s=1000)
    first = asyncio.ensure_future(calls.run(scripted(OSError("busy"))))
    await asyncio.sleep(0)
    assert await calls.run(scripted("well")) == "well"
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_cancelling_ends_the_attempt_and_the_attempts():
    attempts = []

    async def hang():
        attempts.append(asyncio.current_task())
        await asyncio.Event().wait()

    task = asyncio.ensure_future(RemoteCalls(**QUICK).run(hang))
    while not attempts:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(attempts) == 1


def test_one_object_serves_several_event_loops():
    calls = RemoteCalls(max_concurrent=1, **QUICK)

    async def use():
        return await asyncio.gather(*(calls.run(scripted(OSError("x"), n)) for n in range(3)))

    results = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(use()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [*results, asyncio.run(use())] == [[0, 1, 2]] * 3


def test_pauses_double_up_to_a_minute_and_leave_the_global_generator_alone():
    calls, state = RemoteCalls(backoff_s=0.5), random.getstate()

    for number, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (8, MAX_BACKOFF_S), (10**6, MAX_BACKOFF_S)):
        pauses = [calls._pause_s(number) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 1
    assert random.getstate() == state


@pytest.mark.parametrize(
    "setting",
    [
        *({"timeout_s": value} for value in (0, -1, float("nan"), float("inf"), "60", True)),
        *({"max_attempts": value} for value in (0, -1, 1.5, "3", True, None)),
        *({"max_concurrent": value} for value in (0, -1, 1.5, "3", True)),
    ],
)
def test_numbers_that_cannot_work_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigurationError, match=f"{name}={value!r} must be"):
        RemoteCalls(**setting)
    with pytest.raises(ConfigurationError, match=f"{name}={value!r} must be"):
        BaseGrader.from_function("judge", len, **setting)


@pytest.mark.parametrize("backoff_s", [-1, float("nan"), float("inf"), "1", None, True])
def test_a_pause_that_cannot_be_is_refused(backoff_s):
    with pytest.raises(ConfigurationError, match="backoff_s="):
        RemoteCalls(backoff_s=backoff_s)
