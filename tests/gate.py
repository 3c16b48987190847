"""A gate before the servers that lets through what an IAM policy allows, as AWS would, and notes what was asked for.

Policies are read as the IAM user guide has them: an action is allowed where a statement names it together with every
resource that it is about. What each request is called in policies, and what it is about, follows the Service
Authorization Reference; an image that DetectCustomLabels reads from S3 is read with the caller's permissions.
"""

from __future__ import annotations

import fnmatch
import http.client
import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ACCOUNT = "123456789012"
REGION = "us-east-1"
SCHEDULES = {"POST": "CreateSchedule", "PUT": "UpdateSchedule", "DELETE": "DeleteSchedule", "GET": "GetSchedule"}
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True)
class Need:
    """A permission that a request needs, and whom a role is handed to."""

    action: str
    resource: str
    passed_to: str = ""


@dataclass(frozen=True)
class Policy:
    """Statements that allow; those that deny aren't known."""

    statements: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, text: str) -> Policy:
        document = json.loads(text)
        assert document["Version"] == "2012-10-17"
        return cls(tuple(document["Statement"]))

    def without(self, *sids: str) -> Policy:
        assert set(sids) <= {each["Sid"] for each in self.statements}
        return Policy(tuple(each for each in self.statements if each["Sid"] not in sids))

    @property
    def actions(self) -> set[str]:
        return {action for each in self.statements for action in listed(each["Action"])}

    def allows(self, need: Need) -> bool:
        return any(_fits(statement, need) for statement in self.statements)


@dataclass
class Gate:
    """Endpoints of the servers behind it, and what came through: changed by tests between commands."""

    endpoints: dict[str, str]
    policy: Policy
    asked: set[Need] = field(default_factory=set)
    denied: list[Need] = field(default_factory=list)

    @property
    def actions(self) -> set[str]:
        return {need.action for need in self.asked}

    def env(self) -> dict[str, str]:
        """What sends the SDKs here."""
        return {f"AWS_ENDPOINT_URL_{name.upper()}": endpoint for name, endpoint in self.endpoints.items()}

    def refused(self, needs: Iterable[Need]) -> Need | None:
        """The first need that the policy doesn't meet; they are noted."""
        for need in needs:
            self.asked.add(need)
            if not self.policy.allows(need):
                self.denied.append(need)
                return need
        return None


def listed(value: str | list[str]) -> list[str]:
    """A policy's string, or strings."""
    return [value] if isinstance(value, str) else value


@contextmanager
def gated(policy: Policy, **servers: str) -> Iterator[Gate]:
    """A gate before `servers`, service → endpoint, while the block lasts."""
    gate = Gate({}, policy)
    running = []
    for service, upstream in servers.items():
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(gate, service, upstream))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        gate.endpoints[service] = f"http://127.0.0.1:{server.server_address[1]}"
        running.append(server)
    try:
        yield gate
    finally:
        for server in running:
            server.shutdown()
            server.server_close()


def needs_of(service: str, method: str, path: str, target: str, body: bytes) -> list[Need]:
    """The permissions that one request needs."""
    if service == "s3":
        return list(_of_s3(method, path, body))
    if service == "scheduler":
        return list(_of_scheduler(method, path, body))
    if service == "sts":
        return []  # GetCallerIdentity is allowed to everybody
    operation = target.rpartition(".")[2]
    if service == "service_quotas":
        return [Need(f"servicequotas:{operation}", "*")]
    return list(_of_rekognition(operation, json.loads(body)))


def _of_s3(method: str, path: str, body: bytes) -> Iterator[Need]:
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
    if method == "POST" and "delete" in query:  # many at a time
        for each in ET.fromstring(body).iter():
            if each.tag.endswith("Key"):
                yield Need("s3:DeleteObject", f"arn:aws:s3:::{bucket}/{each.text}")
        return
    if not key:
        action = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket"}[method]
        yield Need(f"s3:{action}", f"arn:aws:s3:::{bucket}")
        return
    action = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}[method]
    if "versionId" in query:
        action += "Version"
    yield Need(f"s3:{action}", f"arn:aws:s3:::{bucket}/{key}")


def _of_scheduler(method: str, path: str, body: bytes) -> Iterator[Need]:
    name = unquote(urlsplit(path).path).rpartition("/")[2]
    yield Need(f"scheduler:{SCHEDULES[method]}", f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/default/{name}")
    if method in {"POST", "PUT"}:
        yield Need("iam:PassRole", json.loads(body)["Target"]["RoleArn"], "scheduler.amazonaws.com")


def _of_rekognition(operation: str, asked: dict[str, Any]) -> Iterator[Need]:
    arns = list(_arns(asked))
    if operation == "CreateProject":
        arns = [f"arn:aws:rekognition:{REGION}:{ACCOUNT}:project/{asked['ProjectName']}/1700000000000"]
    for arn in arns or ["*"]:
        yield Need(f"rekognition:{operation}", arn)
    if operation == "DetectCustomLabels" and (image := asked["Image"].get("S3Object")):
        action = "s3:GetObjectVersion" if "Version" in image else "s3:GetObject"
        yield Need(action, f"arn:aws:s3:::{image['Bucket']}/{image['Name']}")


def _arns(value: Any, key: str = "") -> Iterator[str]:
    """Every ARN that a request names."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _arns(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _arns(item, key)
    elif key.endswith("Arn"):
        yield value


def _fits(statement: Mapping[str, Any], need: Need) -> bool:
    assert statement["Effect"] == "Allow"
    for operator, keys in statement.get("Condition", {}).items():
        assert (operator, list(keys)) == ("StringEquals", ["iam:PassedToService"]), "a condition that isn't known here"
        if need.passed_to not in listed(keys["iam:PassedToService"]):
            return False
    return any(fnmatch.fnmatchcase(need.action, pattern) for pattern in listed(statement["Action"])) and any(
        fnmatch.fnmatchcase(need.resource, pattern) for pattern in listed(statement["Resource"])
    )


def _handler(gate: Gate, service: str, upstream: str) -> type[BaseHTTPRequestHandler]:
    where = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            target = self.headers.get("X-Amz-Target", "")
            refused = gate.refused(needs_of(service, self.command, self.path, target, body))
            if refused is not None:
                self._refuse(refused)
                return
            with closing(http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)) as connection:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # Host too: it is signed
                    if name.lower() not in HOP_BY_HOP | {"expect"}:
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self._end(data, length)

        def _refuse(self, need: Need) -> None:
            said = f"User is not authorized to perform: {need.action} on resource: {need.resource}"
            if service == "s3":
                data = f"<Error><Code>AccessDenied</Code><Message>{said}</Message></Error>".encode()
            else:
                data = json.dumps({"__type": "AccessDeniedException", "Message": said}).encode()
            self.send_response_only(403 if service in {"s3", "scheduler"} else 400)
            self.send_header("x-amzn-ErrorType", "AccessDeniedException")
            self._end(b"" if self.command == "HEAD" else data, str(len(data)))

        def _end(self, data: bytes, length: str | None) -> None:
            if length is not None:
                self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    return Handler
